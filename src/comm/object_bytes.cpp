#include "tandem/comm/object_bytes.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include <ATen/Functions.h>
#include <ATen/MemoryOverlap.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include "tandem/core/error.h"

namespace tandem::comm::detail {
namespace {

[[noreturn]] void fail() { throw CollectiveError("another rank sent bytes that are not those of the object"); }

enum class ValueKind : std::uint8_t { undefined, plain, pickled };

// Kernels may add up in another order where memory begins elsewhere; LibTorch's own begins at multiples of this.
constexpr std::uintptr_t kAlignment = 64;

// How a tensor lies in memory.
struct Layout {
  at::ScalarType type{};
  std::vector<std::int64_t> sizes, strides;
  std::uint8_t offset = 0;  // of its first element, in bytes from a multiple of kAlignment
};

bool is_plain(at::ScalarType type) {
  return at::isIntegralType(type, true) || at::isFloatingType(type) || at::isComplexType(type);
}

// One whose elements are all that there is to it.
bool is_plain(const at::Tensor& tensor) {
  return tensor.layout() == at::kStrided && tensor.is_cpu() && tensor.has_storage() && !tensor.is_nested() &&
         !tensor.is_quantized() && !tensor.is_conj() && !tensor.is_neg() && !tensor._is_zerotensor() &&
         !tensor.requires_grad() && is_plain(tensor.scalar_type());
}

std::vector<std::int64_t> contiguous_strides(const std::vector<std::int64_t>& sizes) {
  std::vector<std::int64_t> strides(sizes.size(), 1);
  for (std::size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<std::int64_t>(sizes[i], 1);
  return strides;
}

// Of a tensor with these sizes; fails where there are more than memory has.
std::int64_t elements_of(const std::vector<std::int64_t>& sizes) {
  std::int64_t elements = 1;
  for (const std::int64_t size : sizes)
    if (size < 0 || __builtin_mul_overflow(elements, size, &elements)) fail();
  return elements;
}

// From the first to the last one, in memory.
std::int64_t span_of(const Layout& layout) {
  std::int64_t span = 1;
  for (std::size_t i = 0; i < layout.sizes.size(); ++i) {
    std::int64_t length = 0;
    if (layout.sizes[i] == 0) return 0;
    if (layout.strides[i] < 0 || __builtin_mul_overflow(layout.sizes[i] - 1, layout.strides[i], &length) ||
        __builtin_add_overflow(span, length, &span))
      fail();
  }
  return span;
}

// Gaps in memory are kept as long as they are not more than the elements.
bool is_kept(const Layout& layout) { return span_of(layout) / 2 <= elements_of(layout.sizes); }

Layout layout_of(const at::Tensor& tensor) {
  const auto address = reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr());
  Layout layout{tensor.scalar_type(), tensor.sizes().vec(), tensor.strides().vec(),
                static_cast<std::uint8_t>(address % kAlignment)};
  if (at::has_internal_overlap(tensor) == at::MemOverlap::Yes || !is_kept(layout))
    layout.strides = contiguous_strides(layout.sizes);
  if (layout.offset % tensor.itemsize() != 0) layout.offset = 0;
  return layout;
}

// Memory that lies as that of `layout` does.
at::Tensor empty_as(const Layout& layout) {
  const std::size_t size = c10::elementSize(layout.type);
  if (layout.offset >= kAlignment || layout.offset % size != 0 || !is_kept(layout)) fail();
  if (layout.offset == 0) return at::empty_strided(layout.sizes, layout.strides, layout.type);
  const auto before = static_cast<std::int64_t>(layout.offset / size);
  return at::empty({before + span_of(layout)}, layout.type).as_strided(layout.sizes, layout.strides, before);
}

// Of elements in memory, where they lie without gaps, otherwise in their order.
void add_plain(std::string& bytes, const at::Tensor& tensor) {
  const Layout layout = layout_of(tensor);
  const bool dense = tensor.is_non_overlapping_and_dense();
  const at::Tensor elements = dense ? tensor : tensor.contiguous();
  Bytes<at::ScalarType>::add(bytes, layout.type);
  Bytes<std::vector<std::int64_t>>::add(bytes, layout.sizes);
  Bytes<std::vector<std::int64_t>>::add(bytes, layout.strides);
  Bytes<std::uint8_t>::add(bytes, layout.offset);
  add_count(bytes, elements.nbytes());
  if (elements.nbytes() > 0) bytes.append(static_cast<const char*>(elements.const_data_ptr()), elements.nbytes());
}

at::Tensor take_plain(std::string_view& bytes) {
  Layout layout;
  Bytes<at::ScalarType>::take(bytes, layout.type);
  Bytes<std::vector<std::int64_t>>::take(bytes, layout.sizes);
  Bytes<std::vector<std::int64_t>>::take(bytes, layout.strides);
  Bytes<std::uint8_t>::take(bytes, layout.offset);
  const std::string_view elements = take_bytes(bytes, take_count(bytes, 1));
  if (layout.type < at::ScalarType() || layout.type >= at::ScalarType::NumOptions || !is_plain(layout.type)) fail();
  if (layout.strides.size() != layout.sizes.size()) fail();
  const auto size = static_cast<std::int64_t>(c10::elementSize(layout.type));
  if (static_cast<std::int64_t>(elements.size()) % size != 0 ||
      static_cast<std::int64_t>(elements.size()) / size != elements_of(layout.sizes))
    fail();
  at::Tensor tensor = empty_as(layout);
  if (elements.empty()) return tensor;
  const bool dense = tensor.is_non_overlapping_and_dense();
  const at::Tensor into = dense ? tensor : at::empty(layout.sizes, layout.type);
  std::memcpy(into.mutable_data_ptr(), elements.data(), elements.size());
  if (!dense) tensor.copy_(into);
  return tensor;
}

}  // namespace

std::string_view take_bytes(std::string_view& bytes, std::size_t size) {
  if (size > bytes.size()) fail();
  const std::string_view taken = bytes.substr(0, size);
  bytes.remove_prefix(size);
  return taken;
}

std::size_t take_count(std::string_view& bytes, std::size_t least) {
  std::uint64_t count = 0;
  std::memcpy(&count, take_bytes(bytes, sizeof count).data(), sizeof count);
  if (count > bytes.size() / least) fail();
  return count;
}

void add_count(std::string& bytes, std::size_t count) {
  const std::uint64_t number = count;
  bytes.append(reinterpret_cast<const char*>(&number), sizeof number);
}

void check_taken(std::string_view bytes) {
  if (!bytes.empty()) fail();
}

// LibTorch pickles no undefined tensor, and of others all of the memory that they are a part of.
void add_value(std::string& bytes, const c10::IValue& value) {
  const bool is_tensor = value.isTensor();
  if (is_tensor && value.toTensor().defined() && !value.toTensor().is_cpu())
    return add_value(bytes, value.toTensor().cpu());
  const ValueKind kind = is_tensor && !value.toTensor().defined()  ? ValueKind::undefined
                         : is_tensor && is_plain(value.toTensor()) ? ValueKind::plain
                                                                   : ValueKind::pickled;
  Bytes<ValueKind>::add(bytes, kind);
  if (kind == ValueKind::plain) add_plain(bytes, value.toTensor());
  if (kind != ValueKind::pickled) return;
  const std::vector<char> pickled = torch::jit::pickle_save(value);
  add_count(bytes, pickled.size());
  bytes.append(pickled.data(), pickled.size());
}

c10::IValue take_value(std::string_view& bytes) {
  ValueKind kind{};
  Bytes<ValueKind>::take(bytes, kind);
  if (kind == ValueKind::undefined) return at::Tensor();
  if (kind == ValueKind::plain) return take_plain(bytes);
  const std::string_view pickled = take_bytes(bytes, take_count(bytes, 1));
  return torch::jit::pickle_load({pickled.begin(), pickled.end()});
}

}  // namespace tandem::comm::detail
