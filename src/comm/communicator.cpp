#include "tandem/comm/communicator.h"

#include <ATen/core/grad_mode.h>

#include "comm/check_tensors.h"
#include "comm/describe_call.h"
#include "tandem/trace/range.h"

namespace tandem::comm {
namespace {

void check_reductions(ReduceOp op, at::TensorList tensors) {
  for (const at::Tensor& tensor : tensors) check_reduction(op, tensor.scalar_type());
}

CallRecord describe_reduction(const char* operation, at::TensorList tensors, ReduceOp op,
                              SizeCheck check = SizeCheck::all) {
  CallRecord call = describe_call(operation, tensors, check);
  call.reduce = op;
  return call;
}

}  // namespace

void Communicator::all_reduce(at::TensorList inputs, at::TensorList outputs, ReduceOp op) {
  const trace::Range range(trace::Event::collective);
  check_dense(inputs, device_, "all_reduce");
  check_reductions(op, inputs);
  if (outputs.data() != inputs.data()) check_outputs(inputs, outputs, device_);
  const at::NoGradGuard no_grad;
  do_all_reduce(describe_reduction("all_reduce", inputs, op), inputs, outputs, op);
}

CallRecord Communicator::describe_start(at::TensorList inputs, at::TensorList outputs, ReduceOp op) const {
  check_rows(inputs, outputs, device_);
  check_reductions(op, inputs);
  return describe_reduction("all_reduce", inputs, op, SizeCheck::elements);
}

std::uint64_t Communicator::start_all_reduce(at::TensorList inputs, at::TensorList outputs, ReduceOp op) {
  const CallRecord call = describe_start(inputs, outputs, op);
  const at::NoGradGuard no_grad;
  return do_start_all_reduce(call, inputs, outputs, op);
}

void Communicator::reduce(at::TensorList tensors, ReduceOp op, int root) {
  const trace::Range range(trace::Event::collective);
  check_root(root, world_size_, "reduce");
  check_dense(tensors, device_, "reduce");
  check_reductions(op, tensors);
  CallRecord call = describe_reduction("reduce", tensors, op);
  call.root = root;
  call.root_receives = true;
  const at::NoGradGuard no_grad;
  do_reduce(call, tensors, op, root);
}

void Communicator::broadcast(at::TensorList tensors, int root) {
  const trace::Range range(trace::Event::collective);
  check_dense(tensors, device_, "broadcast");
  check_root(root, world_size_, "broadcast");
  CallRecord call = describe_call("broadcast", tensors);
  call.root = root;
  const at::NoGradGuard no_grad;
  do_broadcast(call, tensors, root);
}

std::vector<at::Tensor> Communicator::all_gather(const at::Tensor& tensor) {
  const trace::Range range(trace::Event::collective);
  check_dense(tensor, device_, "all_gather");
  const at::NoGradGuard no_grad;
  return do_all_gather(describe_call("all_gather", tensor, SizeCheck::all_but_first_dim), tensor);
}

at::Tensor Communicator::reduce_scatter(const at::Tensor& input, ReduceOp op) {
  const trace::Range range(trace::Event::collective);
  check_dense(input, device_, "reduce_scatter");
  check_reduction(op, input.scalar_type());
  check_divides(input, world_size_);
  const at::NoGradGuard no_grad;
  return do_reduce_scatter(describe_reduction("reduce_scatter", input, op), input, op);
}

std::vector<at::Tensor> Communicator::all_to_all(at::TensorList inputs) {
  const trace::Range range(trace::Event::collective);
  check_dense(inputs, device_, "all_to_all");
  check_one_a_rank(inputs, world_size_);
  const at::NoGradGuard no_grad;
  return do_all_to_all(describe_call("all_to_all", inputs, SizeCheck::none), inputs);
}

void Communicator::barrier() {
  const trace::Range range(trace::Event::collective);
  do_barrier({.operation = "barrier"});
}

}  // namespace tandem::comm
