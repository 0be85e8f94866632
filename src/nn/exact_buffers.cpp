#include "nn/exact_buffers.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "nn/tensor_layout.h"

namespace tandem::nn {
namespace {

std::vector<at::Tensor> copies_of(const std::vector<at::Tensor>& tensors) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> copies;
  for (const at::Tensor& tensor : tensors) copies.push_back(tensor.detach().clone());
  return copies;
}

// Writes only what differs: a write makes a graph that has saved the tensor useless.
void give_back(const std::vector<at::Tensor>& tensors, const std::vector<at::Tensor>& values) {
  const at::NoGradGuard no_grad;
  for (std::size_t i = 0; i < values.size(); ++i)
    if (!tensors[i].is_cpu() || !same_bits(tensors[i], values[i])) at::Tensor(tensors[i]).copy_(values[i]);
}

}  // namespace

std::vector<at::Tensor> ExactBuffers::tensors() const {
  std::vector<at::Tensor> all;
  for (const auto& model : models_)
    for (const at::Tensor& tensor : model->followed_tensors()) all.push_back(tensor);
  return memory_of(all);
}

void ExactBuffers::begin_micro_batch(int sub_step, int each) {
  if (each == 1) return;
  if (sub_step == 0)
    first_ = copies_of(tensors());
  else
    give_back(tensors(), first_);
}

void ExactBuffers::after_pass(int sub_step) {
  if (sub_step == 0 && communicator_.rank() == 0) main_ = copies_of(tensors());
}

void ExactBuffers::exchange() {
  const auto mine = tensors();
  if (main_.size() != mine.size()) main_ = copies_of(mine);  // also on rank 0, where shard 0 has made no pass
  if (communicator_.world_size() > 1 && !main_.empty()) communicator_.broadcast(main_, 0);
}

void ExactBuffers::end_step() {
  if (main_.empty()) return;
  const auto mine = tensors();
  if (main_.size() == mine.size()) give_back(mine, main_);
  main_.clear();
  first_.clear();
}

}  // namespace tandem::nn
