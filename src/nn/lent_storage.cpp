#include "nn/lent_storage.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include <ATen/Functions.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/COW.h>
#include <c10/core/impl/COWDeleter.h>

#include "nn/copy_on_write.h"

namespace tandem::nn {
namespace {

at::DataPtr copy_of(const LentMemory& memory, c10::Allocator& allocator) {
  at::DataPtr copy = allocator.allocate(memory.bytes);
  std::memcpy(copy.get(), memory.data.get(), memory.bytes);
  return copy;
}

at::DataPtr another(const at::DataPtr& lent) {
  auto* const context = lent.cast_context<c10::impl::cow::COWDeleterContext>(c10::impl::cow::cow_deleter);
  context->increment_refcount();
  return {lent.get(), context, c10::impl::cow::cow_deleter, lent.device()};
}

at::DataPtr take_data(c10::StorageImpl& storage) {
  at::DataPtr data = std::move(storage._mutable_data_ptr_no_checks());
  storage.set_data_ptr_noswap({nullptr, data.device()});
  return data;
}

at::Storage storage_without_memory(std::size_t bytes) {
  return at::Storage(c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(),
                                                           static_cast<std::int64_t>(bytes),
                                                           at::DataPtr(nullptr, at::kCPU), c10::GetCPUAllocator(),
                                                           /*resizable=*/true));
}

}  // namespace

bool LentStorage::possible(const at::Storage& storage) {
  const c10::StorageImpl& impl = *storage.unsafeGetStorageImpl();
  return impl.device_type() == at::kCPU && impl.resizable() && impl.allocator() && impl.data() &&
         !c10::impl::cow::is_cow_data_ptr(impl.data_ptr());
}

LentStorage::LentStorage(at::Storage storage)
    : storage_(std::move(storage)),
      memory_(std::make_shared<LentMemory>(LentMemory{take_data(impl()), impl().nbytes()})) {
  lend();
}

LentStorage::LentStorage(at::Storage storage, std::shared_ptr<LentMemory> memory)
    : storage_(std::move(storage)), memory_(std::move(memory)) {
  lend();
}

LentStorage::~LentStorage() { end(); }

void LentStorage::lend() {
  at::DataPtr lent = copy_on_write(memory_->data.get(), memory_, memory_->data.device());
  keeper_ = another(lent);
  impl().set_data_ptr_noswap(std::move(lent));
}

bool LentStorage::untouched() const { return memory_ && impl().data() == memory_->data.get(); }

bool LentStorage::holds(const at::Tensor& tensor) const {
  return tensor.defined() && tensor.has_storage() && tensor.storage().unsafeGetStorageImpl() == &impl();
}

void LentStorage::refer_to(std::shared_ptr<LentMemory> memory) {
  if (memory == memory_) return;
  take_data(impl());
  memory_ = std::move(memory);
  lend();
}

void LentStorage::separate() {
  if (!untouched()) return;
  if (memory_.use_count() > 2)  // this and the context's
    refer_to(std::make_shared<LentMemory>(LentMemory{copy_of(*memory_, *impl().allocator()), memory_->bytes}));
}

void LentStorage::end() {
  if (!memory_) return;
  const bool is_seen = storage_.use_count() > 1;
  if (untouched()) {
    if (is_seen && memory_.use_count() > 2) {
      impl().set_data_ptr_noswap(copy_of(*memory_, *impl().allocator()));
    } else {
      take_data(impl());
      keeper_.clear();
      if (memory_.use_count() == 1) {
        std::atomic_thread_fence(std::memory_order_acquire);  // others that referred to it have read it
        impl().set_data_ptr_noswap(std::move(memory_->data));
      } else if (is_seen) {
        impl().set_data_ptr_noswap(copy_of(*memory_, *impl().allocator()));
      }
    }
  }
  keeper_.clear();
  memory_.reset();
}

LentStorage::Writing::Writing(std::vector<LentStorage*> storages) : storages_(std::move(storages)) {
  lent_.reserve(storages_.size());
  std::sort(storages_.begin(), storages_.end());
  storages_.erase(std::unique(storages_.begin(), storages_.end()), storages_.end());
  std::erase_if(storages_, [](const LentStorage* storage) { return !storage->untouched(); });
  for (LentStorage* storage : storages_) {
    at::DataPtr& data = storage->impl()._mutable_data_ptr_no_checks();
    lent_.push_back(std::move(data));
    storage->impl().set_data_ptr_noswap(
        {lent_.back().get(), nullptr, &c10::detail::deleteNothing, lent_.back().device()});
  }
}

LentStorage::Writing::~Writing() {
  for (std::size_t i = 0; i < storages_.size(); ++i)
    if (storages_[i]->untouched()) storages_[i]->impl().set_data_ptr_noswap(std::move(lent_[i]));
}

std::unique_ptr<LentStorage> lend(at::Tensor& tensor) {
  if (!tensor.is_non_overlapping_and_dense()) tensor = tensor.clone();
  if (LentStorage::possible(tensor.storage()) && tensor.storage().nbytes() == tensor.nbytes())
    return std::make_unique<LentStorage>(tensor.storage());
  auto* const keeper = new at::Storage(tensor.storage());
  at::DataPtr part(
      const_cast<void*>(tensor.const_data_ptr()), keeper,
      [](void* storage) { delete static_cast<at::Storage*>(storage); }, tensor.device());
  std::unique_ptr<LentStorage> lent;
  tensor = tensor_over(std::make_shared<LentMemory>(LentMemory{std::move(part), tensor.nbytes()}), tensor, lent);
  return lent;
}

at::Tensor tensor_over(const std::shared_ptr<LentMemory>& memory, const at::Tensor& like,
                       std::unique_ptr<LentStorage>& lent) {
  lent = std::make_unique<LentStorage>(storage_without_memory(memory->bytes), memory);
  return at::empty({0}, like.options().requires_grad(false)).set_(lent->storage(), 0, like.sizes(), like.strides());
}

}  // namespace tandem::nn
