#include "support/fake_device.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include "support/fake_graph.h"
#include "support/host_counts.h"
#include "support/stream_order.h"

namespace tandem::test::fake {
namespace {

Order& order() {
  static Order& order = *new Order;
  return order;
}

thread_local c10::DeviceIndex this_device = 0;
thread_local std::array<c10::StreamId, kDevices> current_streams{};
std::array<std::atomic<c10::StreamId>, kDevices> streams_made{};
thread_local int in_fallback = 0;
std::atomic<int> pageable{0};

// What an operator does within is a part of it.
void count_launch(const std::string& name) {
  if (in_fallback == 0) note_launch(name);
}

c10::Stream stream_of(c10::DeviceIndex device) {
  return c10::Stream(c10::Stream::UNSAFE, c10::Device(c10::kCUDA, device),
                     current_streams[static_cast<std::size_t>(device)]);
}

struct Event {
  Clock clock;
  bool asked = false;  // since it was recorded, whether it is done
};

class Guard final : public c10::impl::DeviceGuardImplInterface {
 public:
  c10::DeviceType type() const override { return c10::kCUDA; }
  c10::Device exchangeDevice(c10::Device to) const override {
    return {c10::kCUDA, std::exchange(this_device, to.index())};
  }
  c10::Device getDevice() const override { return {c10::kCUDA, this_device}; }
  void setDevice(c10::Device to) const override { this_device = to.index(); }
  void uncheckedSetDevice(c10::Device to) const noexcept override { this_device = to.index(); }
  c10::Stream getStream(c10::Device of) const override { return stream_of(of.has_index() ? of.index() : this_device); }
  c10::Stream getDefaultStream(c10::Device of) const override { return c10::Stream(c10::Stream::DEFAULT, of); }
  c10::Stream getNewStream(c10::Device of, int) const override {
    return c10::Stream(c10::Stream::UNSAFE, of, ++streams_made[static_cast<std::size_t>(of.index())]);
  }
  c10::Stream getStreamFromGlobalPool(c10::Device of, bool) const override { return getNewStream(of, 0); }
  c10::Stream exchangeStream(c10::Stream to) const override {
    const c10::Stream before = stream_of(to.device_index());
    current_streams[static_cast<std::size_t>(to.device_index())] = to.id();
    return before;
  }
  void* getStreamNativeHandle(c10::Stream stream) const override { return handle_of(key_of(stream)); }

  void record(void** event, const c10::Stream& stream, c10::DeviceIndex, c10::EventFlag) const override {
    if (!*event) *event = new Event;
    *static_cast<Event*>(*event) = {order().record(key_of(stream))};
  }
  void block(void* event, const c10::Stream& stream) const override {
    order().block(key_of(stream), static_cast<Event*>(event)->clock);
  }
  // Not yet when it is asked for the first time.
  bool queryEvent(void* event) const override { return std::exchange(static_cast<Event*>(event)->asked, true); }
  void destroyEvent(void* event, c10::DeviceIndex) const noexcept override { delete static_cast<Event*>(event); }
  void synchronizeEvent(void* event) const override {
    must_not_be_recorded();
    note_wait("synchronizeEvent");
    order().synchronize(static_cast<Event*>(event)->clock);
  }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream& stream) const override {
    must_not_be_recorded();
    note_wait("synchronizeStream");
    order().synchronize(key_of(stream));
  }

  void synchronizeDevice(c10::DeviceIndex device) const override {
    must_not_be_recorded();
    note_wait("synchronizeDevice");
    const c10::Device of(c10::kCUDA, device);
    for (c10::StreamId id = 0; id <= streams_made[static_cast<std::size_t>(device)]; ++id)
      order().synchronize(key_of(c10::Stream(c10::Stream::UNSAFE, of, id)));
  }

  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }
  void recordDataPtrOnStream(const c10::DataPtr& data, const c10::Stream& stream) const override {
    order().recorded(data.get(), key_of(stream));
  }
};

// Freed memory stays mapped and goes to the same stream again, as LibTorch's allocator does it: an all-reduce that a
// cancelled rank has enqueued may still use it.
class FreeMemory {
 public:
  void* take(Key stream, std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    auto& free = free_[{stream, whole(bytes)}];
    if (free.empty()) return std::aligned_alloc(kAlignment, whole(bytes));
    void* const data = free.back();
    free.pop_back();
    kept_ -= std::min(kept_, bytes);
    return data;
  }

  void give(Key stream, std::size_t bytes, void* data) {
    const std::lock_guard lock(mutex_);
    free_[{stream, whole(bytes)}].push_back(data);
    kept_ += bytes;
  }

  // Bytes that are kept, as far as they have not been said to be given back.
  std::size_t kept() {
    const std::lock_guard lock(mutex_);
    return kept_;
  }

  void forget() {
    const std::lock_guard lock(mutex_);
    kept_ = 0;
  }

 private:
  static constexpr std::size_t kAlignment = 64;
  static std::size_t whole(std::size_t bytes) { return (bytes / kAlignment + 1) * kAlignment; }

  std::mutex mutex_;
  std::map<std::pair<Key, std::size_t>, std::vector<void*>> free_;
  std::size_t kept_ = 0;
};

FreeMemory& free_memory() {
  static FreeMemory& memory = *new FreeMemory;
  return memory;
}

void release(void* data) {
  const Block block = order().freed(data);
  free_memory().give(block.stream, block.bytes, data);
}

void* allocate_host(std::size_t bytes, bool on_device) {
  const Key stream = key_of(stream_of(this_device));
  void* const data = free_memory().take(stream, bytes);
  order().allocated(data, bytes, on_device, stream);
  return data;
}

std::atomic<std::size_t> largest_tensor{std::size_t{1} << 40};
std::atomic<int> small_device = -1;  // that has no more than this; -1: all have
std::function<void(const OutOfMemory&)> tell_out_of_memory;

std::atomic<std::size_t> free_bytes{std::size_t{1} << 40}, most_bytes{0};

// All devices count as one.
class DeviceAllocator final : public c10::DeviceAllocator {
 public:
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override { free_memory().forget(); }
  void recordStream(const c10::DataPtr& data, c10::Stream stream) override {
    order().recorded(data.get(), key_of(stream));
  }
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex) override {
    c10::CachingDeviceAllocator::DeviceStats stats;
    constexpr auto kAll = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    stats.allocated_bytes[kAll].current = static_cast<std::int64_t>(order().bytes());
    stats.allocated_bytes[kAll].peak = static_cast<std::int64_t>(most_bytes);
    stats.reserved_bytes[kAll].current = static_cast<std::int64_t>(order().bytes() + free_memory().kept());
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex) override { most_bytes = order().bytes(); }
  std::pair<std::size_t, std::size_t> getMemoryInfo(c10::DeviceIndex) override {
    return {free_bytes, std::size_t{1} << 40};
  }

  c10::DataPtr allocate(std::size_t bytes) override {
    if (bytes > largest_tensor && (small_device < 0 || small_device == this_device)) {
      if (tell_out_of_memory) tell_out_of_memory({this_device, bytes, largest_tensor});
      TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory. Tried to allocate ", bytes, " bytes.");
    }
    void* const data = bytes == 0 ? nullptr : allocate_host(bytes, true);
    most_bytes = std::max<std::size_t>(most_bytes, order().bytes());
    return {data, data, data ? &release : nullptr, {c10::kCUDA, this_device}};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
};

std::mutex pinned_mutex;
std::set<const void*> pinned;

void release_pinned(void* data) {
  {
    const std::lock_guard lock(pinned_mutex);
    pinned.erase(data);
  }
  release(data);
}

class PinnedAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t bytes) override {
    void* const data = allocate_host(std::max<std::size_t>(bytes, 1), false);
    const std::lock_guard lock(pinned_mutex);
    pinned.insert(data);
    return {data, data, &release_pinned, c10::kCPU};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release_pinned; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
};

// Numbers are the CPU generator's.
class Generator final : public c10::GeneratorImpl {
 public:
  explicit Generator(c10::DeviceIndex device)
      : GeneratorImpl({c10::kCUDA, device}, c10::DispatchKeySet(c10::DispatchKey::CUDA)),
        cpu(at::make_generator<at::CPUGeneratorImpl>()) {}

  void set_current_seed(std::uint64_t seed) override { cpu.set_current_seed(seed); }
  void set_offset(std::uint64_t offset) override { cpu.set_offset(offset); }
  std::uint64_t get_offset() const override { return cpu.get_offset(); }
  std::uint64_t current_seed() const override { return cpu.current_seed(); }
  std::uint64_t seed() override { return cpu.seed(); }
  void set_state(const c10::TensorImpl& state) override { cpu.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    must_not_be_recorded();
    return cpu.unsafeGetGeneratorImpl()->get_state();
  }
  void graphsafe_set_state(const c10::intrusive_ptr<GeneratorImpl>& shared) override {
    cpu = static_cast<const Generator&>(*shared).cpu;
  }
  c10::intrusive_ptr<GeneratorImpl> graphsafe_get_state() const override {
    auto same = c10::make_intrusive<Generator>(device().index());
    same->cpu = cpu;
    return same;
  }

  at::Generator cpu;  // shared by those that have one state

 private:
  Generator* clone_impl() const override {
    auto* const copy = new Generator(device().index());
    copy->cpu = cpu.clone();
    return copy;
  }
};

}  // namespace

// LibTorch finds it by this name.
class CUDAHooks final : public at::CUDAHooksInterface {
 public:
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  int getNumGPUs() const override { return kDevices; }
  c10::DeviceIndex current_device() const override { return this_device; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return kDevices; }
  c10::DeviceIndex getCurrentDevice() const override { return this_device; }
  void setCurrentDevice(c10::DeviceIndex to) const override { this_device = to; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex to) const override { return std::exchange(this_device, to); }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex to) const override { return exchangeDevice(to); }
  bool isPinnedPtr(const void* data) const override {
    const std::lock_guard lock(pinned_mutex);
    const auto after = pinned.upper_bound(data);
    return after != pinned.begin() && *std::prev(after) == data;
  }
  c10::Allocator* getPinnedMemoryAllocator() const override {
    static PinnedAllocator& allocator = *new PinnedAllocator;
    return &allocator;
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex device) const override {
    static auto& generators = *new std::vector<at::Generator>([] {
      std::vector<at::Generator> all;
      for (int i = 0; i < kDevices; ++i) all.push_back(at::make_generator<Generator>(static_cast<c10::DeviceIndex>(i)));
      return all;
    }());
    return generators[static_cast<std::size_t>(device < 0 ? this_device : device)];
  }
  at::Generator getNewGenerator(c10::DeviceIndex device) const override {
    return at::make_generator<Generator>(device < 0 ? this_device : device);
  }
};

}  // namespace tandem::test::fake

namespace at {
using tandem::test::fake::CUDAHooks;
REGISTER_CUDA_HOOKS(CUDAHooks)
}  // namespace at

namespace tandem::test::fake {
namespace {

// The bytes that a tensor spans.
std::size_t span_of(const at::Tensor& tensor) {
  if (tensor.numel() == 0) return 0;
  std::int64_t last = 0;
  for (std::int64_t dim = 0; dim < tensor.dim(); ++dim) last += (tensor.size(dim) - 1) * tensor.stride(dim);
  return static_cast<std::size_t>(last + 1) * tensor.element_size();
}

bool is_fake(const at::Tensor& tensor) { return tensor.device().type() == c10::kCUDA; }

at::Tensor empty_strided(at::IntArrayRef sizes, at::IntArrayRef strides, std::optional<at::ScalarType> type,
                         std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>) {
  const c10::DeviceGuard guard(device.value_or(fake::device(this_device)));
  constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::CUDA);
  return at::detail::empty_strided_generic(sizes, strides, c10::GetAllocator(c10::kCUDA), kKeys,
                                           type.value_or(at::kFloat));
}

at::Tensor empty(at::IntArrayRef sizes, std::optional<at::ScalarType> type, std::optional<at::Layout>,
                 std::optional<at::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  const c10::DeviceGuard guard(device.value_or(fake::device(this_device)));
  constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::CUDA);
  return at::detail::empty_generic(sizes, c10::GetAllocator(c10::kCUDA), kKeys, type.value_or(at::kFloat), format);
}

// The same memory as a CPU tensor.
at::Tensor on_host(const at::Tensor& tensor) {
  if (!is_fake(tensor)) return tensor;
  const auto options = at::dtype(tensor.scalar_type());
  if (tensor.numel() == 0) return at::empty(tensor.sizes(), options);
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), options);
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  if (tape() && in_fallback == 0) {
    tape()->keep(to);
    tape()->add([from, to, non_blocking] { copy_from(from, to, non_blocking); });
  }
  if (to.numel() > 0) count_launch("copy_");
  const at::Tensor& on_device = is_fake(to) ? to : from;
  const Key stream = key_of(stream_of(on_device.device().index()));
  order().note(stream, from.data_ptr(), span_of(from), false);
  order().note(stream, to.data_ptr(), span_of(to), true);
  at::Tensor source = on_host(from), target = on_host(to);
  if (from.is_conj()) source = source.conj();
  if (from.is_neg()) source = source._neg_view();
  target.copy_(source);
  const at::Tensor& host = is_fake(to) ? from : to;
  const bool waits = !is_fake(host) && !(non_blocking && host.is_pinned());
  if (waits && in_fallback == 0) must_not_be_recorded();
  if (waits && in_fallback == 0) {
    note_wait(is_fake(from) ? "copy to the host" : "copy from pageable memory");
    order().synchronize(stream);
  }
  // LibTorch does not give pinned memory away before what has been enqueued with it is done.
  if (!waits && !is_fake(host)) order().recorded(host.data_ptr(), stream);
  if (!is_fake(from) && !from.is_pinned() && in_fallback == 0) pageable += 1;
  return to;
}

at::Tensor& copy(at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  copy_from(from.expand_as(to), to, non_blocking);
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  if (from.sizes() != to.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar local_scalar(const at::Tensor& tensor) {
  must_not_be_recorded();
  note_wait("item");
  const Key stream = key_of(stream_of(tensor.device().index()));
  order().note(stream, tensor.data_ptr(), span_of(tensor), false);
  order().synchronize(stream);
  return on_host(tensor).item();
}

void record_stream(at::Tensor& tensor, c10::Stream stream) { order().recorded(tensor.data_ptr(), key_of(stream)); }

// Draws from the default generator, and cannot be given another one.
std::tuple<at::Tensor, at::Tensor> native_dropout(const at::Tensor& input, double p, std::optional<bool> train) {
  if (Tape* const records = tape()) {
    const NotRecorded now;
    const auto result = fake::native_dropout(input, p, train);
    records->add([input, p, train, result] {
      // Its own generator was the default when it was recorded, and has the state that it draws from.
      const auto again = at::native_dropout(input, p, train);
      std::get<0>(result).copy_(std::get<0>(again));
      std::get<1>(result).copy_(std::get<1>(again));
    });
    return result;
  }
  count_launch("native_dropout");
  const Key stream = key_of(stream_of(input.device().index()));
  order().note(stream, input.data_ptr(), span_of(input), false);
  const at::Generator generator = at::globalContext().defaultGenerator(input.device());
  const at::Tensor mask = at::empty(input.sizes(), at::kBool)
                              .bernoulli_(train.value_or(true) ? 1 - p : 1.0,
                                          static_cast<const Generator&>(*generator.unsafeGetGeneratorImpl()).cpu);
  const at::Tensor result = on_host(input).mul(mask).div(1 - p);
  return {result.to(input.device()), mask.to(input.device())};
}

at::Tensor as_strided(const at::Tensor& self, at::IntArrayRef sizes, at::IntArrayRef strides,
                      std::optional<std::int64_t> offset) {
  return at::native::as_strided_tensorimpl(self, sizes, strides, offset);
}

at::Tensor view(const at::Tensor& self, at::IntArrayRef sizes) { return at::native::view(self, sizes); }

at::Tensor reshape_alias(const at::Tensor& self, at::IntArrayRef sizes, at::IntArrayRef strides) {
  return at::native::_reshape_alias(self, sizes, strides);
}

const at::Tensor& resize(const at::Tensor& self, at::IntArrayRef sizes, std::optional<at::MemoryFormat> format) {
  return at::native::resize_(self, sizes, format);
}

at::Tensor& set_storage(at::Tensor& self, at::Storage source, std::int64_t offset, at::IntArrayRef sizes,
                        at::IntArrayRef strides) {
  return at::native::set_storage_cpu_(self, std::move(source), offset, sizes, strides);
}

template <class Visit>
void for_each_tensor_in(const std::vector<c10::IValue>& values, const Visit& visit) {
  for (const c10::IValue& value : values) {
    if (value.isTensor() && value.toTensor().defined()) visit(value.toTensor());
    if (value.isTensorList())
      for (const at::Tensor& tensor : value.toTensorVector()) visit(tensor);
  }
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack);

// Tensors that the operator made get what it makes when it is done again.
void record(const c10::OperatorHandle& op, const std::vector<c10::IValue>& arguments, torch::jit::Stack* stack) {
  const auto& returns = op.schema().returns();
  const std::vector<c10::IValue> results(stack->end() - std::ssize(returns), stack->end());
  tape()->add([op, arguments, results] {
    torch::jit::Stack again = arguments;
    fallback(op, &again);
    for (std::size_t i = 0; i < results.size(); ++i) {
      std::vector<at::Tensor> to, from;
      for_each_tensor_in({results[i]}, [&](const at::Tensor& tensor) { to.push_back(tensor); });
      for_each_tensor_in({again[i]}, [&](const at::Tensor& tensor) { from.push_back(tensor); });
      for (std::size_t k = 0; k < to.size(); ++k)
        if (to[k].data_ptr() != from[k].data_ptr()) copy_from(from[k], to[k], true);
    }
  });
}

// Copies between device and host within are part of the operator.
void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  if (tape() && in_fallback == 0) {
    const std::vector<c10::IValue> arguments(stack->end() - std::ssize(op.schema().arguments()), stack->end());
    for_each_tensor_in(arguments, [](const at::Tensor& tensor) { tape()->keep(tensor); });
    {
      const NotRecorded now;
      fallback(op, stack);
    }
    record(op, arguments, stack);
    return;
  }
  count_launch(op.schema().name());
  struct Scope {
    Scope() { in_fallback += 1; }
    ~Scope() { in_fallback -= 1; }
  } const scope;
  for (c10::IValue& value : *stack)
    if (value.isGenerator())
      if (auto* generator = dynamic_cast<Generator*>(value.toGenerator().unsafeGetGeneratorImpl()))
        value = generator->cpu;
  at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(_, CUDA, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("copy_", &copy);
  library.impl("_copy_from", &copy_from);
  library.impl("_copy_from_and_resize", &copy_from_and_resize);
  library.impl("_local_scalar_dense", &local_scalar);
  library.impl("record_stream", &record_stream);
  library.impl("native_dropout", &native_dropout);
  library.impl("as_strided", &as_strided);
  library.impl("view", &view);
  library.impl("_reshape_alias", &reshape_alias);
  library.impl("resize_", &resize);
  library.impl("set_.source_Storage_storage_offset", &set_storage);
  // CUDA has one kernel for many tensors, and for all of a layer norm; without these lines it would be several
  // operators.
  for (const char* const name : {"_foreach_norm.Scalar", "_foreach_mul_.Tensor", "_foreach_mul_.Scalar",
                                 "_foreach_lerp_.Scalar", "_foreach_copy_", "native_layer_norm"})
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

const Guard guard;
const c10::impl::DeviceGuardImplRegistrar registrar(c10::kCUDA, &guard);

}  // namespace

void install() {
  static const bool once = [] {
    c10::SetAllocator(c10::kCUDA, new DeviceAllocator);
    return true;
  }();
  (void)once;
}

c10::Device device(int index) { return {c10::kCUDA, static_cast<c10::DeviceIndex>(index)}; }

void note_read(void* stream, const void* data, std::size_t bytes) { order().note(key_of(stream), data, bytes, false); }
void note_write(void* stream, const void* data, std::size_t bytes) { order().note(key_of(stream), data, bytes, true); }

void on_out_of_memory(std::function<void(const OutOfMemory&)> tell) { tell_out_of_memory = std::move(tell); }
void set_largest_tensor(std::size_t bytes, int only) {
  small_device = only;
  largest_tensor = bytes;
}

std::vector<std::string> races() { return order().reports(); }
void reset() {
  order().reset();
  pageable = 0;
}
int pageable_copies() { return pageable; }
void set_free_memory(std::size_t bytes) { free_bytes = bytes; }

std::size_t allocated() { return order().bytes(); }

}  // namespace tandem::test::fake
