#include "nn/copy_on_write.h"

#include <memory>
#include <utility>

#include <ATen/Functions.h>
#include <ATen/ops/_lazy_clone.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/COW.h>
#include <c10/core/impl/COWDeleter.h>

namespace tandem::nn {

// lazy_clone_storage would make such memory of most storages, but not of memory in the middle of one, nor of memory
// that another allocator than LibTorch's keeps.
at::DataPtr copy_on_write(void* data, std::shared_ptr<void> keeper, c10::Device device) {
  auto holder = std::make_unique<std::shared_ptr<void>>(std::move(keeper));
  std::unique_ptr<void, c10::DeleterFnPtr> kept(
      holder.release(), [](void* pointer) { delete static_cast<std::shared_ptr<void>*>(pointer); });
  auto* context = new c10::impl::cow::COWDeleterContext(std::move(kept));  // cow_deleter deletes it
  return {data, context, c10::impl::cow::cow_deleter, device};
}

at::Tensor lendable(const at::Tensor& of) {
  at::DataPtr data =
      copy_on_write(const_cast<void*>(of.const_data_ptr()), std::make_shared<at::Storage>(of.storage()), of.device());
  const at::Storage storage(c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), of.nbytes(), std::move(data), c10::GetCPUAllocator(), /*resizable=*/false));
  return at::empty({0}, of.options().requires_grad(false)).set_(storage, 0, of.sizes(), of.strides());
}

at::Tensor lent_copy(const at::Tensor& lendable) { return at::_lazy_clone(lendable); }

bool is_lent(const at::Tensor& tensor) { return c10::impl::cow::is_cow_data_ptr(tensor.storage().data_ptr()); }

void end_loan(const at::Tensor& lent) {
  const bool is_referred_to = lent.use_count() > 1 || lent.storage().use_count() > 1;
  if (is_lent(lent) && is_referred_to) c10::impl::cow::materialize_cow_storage(*lent.storage().unsafeGetStorageImpl());
}

at::Tensor readable(const at::Tensor& tensor) {
  return at::from_blob(const_cast<void*>(tensor.const_data_ptr()), tensor.sizes(), tensor.strides(),
                       tensor.options().requires_grad(false));
}

}  // namespace tandem::nn
