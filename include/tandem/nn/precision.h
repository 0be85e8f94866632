#pragma once

#include <cstdint>
#include <utility>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include "tandem/data/batch.h"

namespace tandem {

/// Number format of forward passes. Weights, gradients and optimizer states stay as the model has them, float32.
enum class Precision : std::uint8_t {
  no,    ///< as the model has it
  bf16,  ///< bfloat16 in those operators that LibTorch's autocast runs in it
  fp16   ///< float16 in those operators; losses are scaled, and an update that overflows is skipped, by
         ///< optim::GradScaler
};

}  // namespace tandem

namespace tandem::nn {

/// While alive, the calling thread's operators on a device type autocast to a precision, as torch.autocast's do; other
/// threads see nothing of it. With Precision::no it changes nothing. Scopes nest. Destroyed on the thread that made it.
///
/// Casts of weights are not kept between operators. LibTorch keeps them in one map for the process, which the end of
/// any thread's scope empties: a weight that a forward pass uses twice would get a gradient that depends on when
/// another rank ends its own, and its lock lets one rank cast at a time.
class [[nodiscard]] AutocastScope {
 public:
  /// Begins the scope for operators on devices of type `device`.
  AutocastScope(c10::DeviceType device, Precision precision);
  ~AutocastScope();
  AutocastScope(const AutocastScope&) = delete;
  AutocastScope& operator=(const AutocastScope&) = delete;

 private:
  c10::DeviceType device_;
  bool active_;
  bool enabled_before_ = false, cache_before_ = false;
  at::ScalarType type_before_{};
};

/// `value` with every float16 and bfloat16 tensor in it converted to float32, where autograd follows; numbers, texts
/// and enums stay as they are. Does not compile for a type that may have tensors which nobody can find: a struct says
/// what they are by `batch_fields` (data/batch.h).
template <class T>
T to_float32(T value) {
  static_assert(
      !data::detail::part_kinds<T>().unknown,
      "a prepared model's forward returns a type that may hold tensors, which mixed precision must convert to "
      "float32 and cannot find. For a struct of your own add `inline auto batch_fields(YourStruct& s) { "
      "return std::tie(s.a, s.b); }` beside it, with its tensors, or `return std::tuple<>();` where it has "
      "none (tandem/data/batch.h)");
  return data::map_tensors(std::move(value), [](const at::Tensor& tensor) {
    const bool half = tensor.scalar_type() == at::kHalf || tensor.scalar_type() == at::kBFloat16;
    return half ? tensor.to(at::kFloat) : tensor;
  });
}

/// To be called in a catch block around a forward pass in `precision`: throws a ConfigError that says what to do, with
/// the exception that is being handled nested, when that says that LibTorch lacks a kernel. Returns otherwise.
void explain_missing_kernel(c10::DeviceType device, Precision precision);

}  // namespace tandem::nn
