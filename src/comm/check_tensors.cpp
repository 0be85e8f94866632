#include "comm/check_tensors.h"

#include <string>

#include "tandem/core/error.h"

namespace tandem::comm {
namespace {

[[noreturn]] void throw_unlike(const at::Tensor& input, const at::Tensor& output) {
  throw CollectiveError("all_reduce of " + c10::str(input.scalar_type(), input.sizes()) + " into " +
                        c10::str(output.scalar_type(), output.sizes()) + "; they must be alike");
}

void check_as_many(at::TensorList inputs, at::TensorList outputs) {
  if (inputs.size() == outputs.size()) return;
  throw CollectiveError("all_reduce of " + std::to_string(inputs.size()) + " tensors into " +
                        std::to_string(outputs.size()));
}

}  // namespace

void check_reduction(ReduceOp op, c10::ScalarType type) {
  const auto not_defined = [&](const char* what, const char* instead) {
    return CollectiveError(std::string(what) + " of " + c10::toString(type) + " tensors is not defined; " + instead);
  };
  switch (op) {
    case ReduceOp::sum:
    case ReduceOp::product: return;
    case ReduceOp::mean:
      if (c10::isFloatingType(type) || c10::isComplexType(type)) return;
      throw not_defined("the mean", "convert them to a floating-point type, or use sum");
    case ReduceOp::max:
    case ReduceOp::min:
      if (!c10::isComplexType(type)) return;
      throw not_defined("max or min", "use sum or mean");
  }
  throw CollectiveError("reduction " + std::to_string(static_cast<int>(op)) +
                        " is unknown; use sum, mean, max, min or product");
}

ElementType element_type(c10::ScalarType type) {
  switch (type) {
    case at::kFloat: return ElementType::float32;
    case at::kDouble: return ElementType::float64;
    case at::kHalf: return ElementType::float16;
    case at::kBFloat16: return ElementType::bfloat16;
    case at::kComplexFloat: return ElementType::complex64;
    case at::kComplexDouble: return ElementType::complex128;
    case at::kChar: return ElementType::int8;
    case at::kShort: return ElementType::int16;
    case at::kInt: return ElementType::int32;
    case at::kLong: return ElementType::int64;
    case at::kByte: return ElementType::uint8;
    case at::kUInt16: return ElementType::uint16;
    case at::kUInt32: return ElementType::uint32;
    case at::kUInt64: return ElementType::uint64;
    case at::kBool: return ElementType::boolean;
    default:
      throw CollectiveError(std::string("tensors of type ") + c10::toString(type) +
                            " cannot be reduced; convert them to a floating-point, complex, integer or bool type");
  }
}

void check_dense(at::TensorList tensors, c10::Device device, const char* operation) {
  for (const at::Tensor& tensor : tensors) {
    if (!tensor.defined()) throw CollectiveError(std::string(operation) + " got an undefined tensor");
    if (tensor.layout() != at::kStrided)
      throw CollectiveError(std::string(operation) + " needs dense tensors, got " + c10::str(tensor.layout()) +
                            "; call to_dense() first");
    if (tensor.device() != device)
      throw CollectiveError(std::string(operation) + (device.is_cpu() ? " between CPU ranks" : " on " + device.str()) +
                            " got a tensor on " + tensor.device().str());
  }
}

void check_root(int root, int world_size, const char* operation) {
  if (root < 0 || root >= world_size)
    throw CollectiveError(std::string(operation) + " with root " + std::to_string(root) + "; ranks are 0 to " +
                          std::to_string(world_size - 1));
}

// Whether a tensor's memory is its elements, in order: conjugation and negation may be pending.
bool is_plain(const at::Tensor& tensor) { return tensor.is_contiguous() && !tensor.is_conj() && !tensor.is_neg(); }

at::Tensor plain(const at::Tensor& tensor) {
  const at::Tensor detached = tensor.detach();
  return is_plain(tensor) ? detached : detached.clone(at::MemoryFormat::Contiguous).resolve_conj().resolve_neg();
}

std::vector<at::Tensor> all_plain(at::TensorList tensors) {
  std::vector<at::Tensor> all;
  for (const at::Tensor& tensor : tensors) all.push_back(plain(tensor));
  return all;
}

void copy_back(const std::vector<at::Tensor>& plain, at::TensorList tensors) {
  for (std::size_t i = 0; i < plain.size(); ++i)
    if (!is_plain(tensors[i])) tensors[i].detach().copy_(plain[i]);
}

void check_outputs(at::TensorList inputs, at::TensorList outputs, c10::Device device) {
  check_dense(outputs, device, "all_reduce");
  check_as_many(inputs, outputs);
  for (std::size_t i = 0; i < inputs.size(); ++i)
    if (inputs[i].sizes() != outputs[i].sizes() || inputs[i].scalar_type() != outputs[i].scalar_type())
      throw_unlike(inputs[i], outputs[i]);
}

void check_rows(at::TensorList inputs, at::TensorList outputs, c10::Device device) {
  check_dense(inputs, device, "all_reduce");
  check_dense(outputs, device, "all_reduce");
  check_as_many(inputs, outputs);
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].numel() != outputs[i].numel() || inputs[i].scalar_type() != outputs[i].scalar_type())
      throw_unlike(inputs[i], outputs[i]);
    if (!inputs[i].is_non_overlapping_and_dense() || !outputs[i].is_non_overlapping_and_dense())
      throw CollectiveError("a reduction cannot be started on tensors with gaps or overlaps in memory; use all_reduce");
  }
}

void check_divides(const at::Tensor& input, int world_size) {
  if (input.dim() > 0 && input.size(0) % world_size == 0) return;
  throw CollectiveError("reduce_scatter needs dim 0 divisible by " + std::to_string(world_size) + " ranks, got sizes " +
                        c10::str(input.sizes()));
}

void check_one_a_rank(at::TensorList inputs, int world_size) {
  if (static_cast<int>(inputs.size()) == world_size) return;
  throw CollectiveError("all_to_all needs a tensor a rank, " + std::to_string(world_size) + ", got " +
                        std::to_string(inputs.size()));
}

}  // namespace tandem::comm
