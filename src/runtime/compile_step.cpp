// What an Accelerator does about steps that are recorded and replayed.
#include <ATen/core/grad_mode.h>

#include "runtime/training_parts.h"
#include "tandem/core/error.h"
#include "tandem/runtime/accelerator.h"

namespace tandem {

std::unique_ptr<StepGraph> Accelerator::make_step_graph() {
  const auto parameters = [this] {
    std::vector<at::Tensor> all;
    for (const auto& reducer : prepared_.reducers)
      for (const auto& [name, parameter] : reducer->parameters()) all.push_back(parameter);
    return all;
  };
  return std::make_unique<StepGraph>(context_, parameters, [this] { return obstacle_to_recording(); });
}

std::optional<std::string> Accelerator::obstacle_to_recording() const {
  const GradientState& state = context_.gradients;
  if (device().is_cpu()) return "CPU ranks have no graphs";
  if (prepared_.scaler) return "under fp16 the host decides whether an update is made";
  if (state.num_steps > 1) return "a window of several micro-batches is not recorded";
  if (state.no_sync) return "gradients are not reduced within no_sync";
  if (state.local_sgd) return "ranks train on their own within local_sgd";
  if (reductions_in_join_) return "ranks take different steps within join_uneven_inputs";
  for (const auto& optimizer : prepared_.alive_optimizers())
    if (optimizer.sharded()) return "updates are divided over the ranks";
  if (context_.state->config.gradient_reducer.check_finite) return "check_finite looks at each reduction's gradients";
  for (const auto& reducer : prepared_.reducers)
    if (reducer->has_communication_hook()) return "a model has a communication hook";
  return std::nullopt;
}

// Gradients of a recorded backward pass are reduced when it has been replayed: kernels that wait for other ranks do not
// belong in graphs of several GPUs in one process (NCCL's documentation warns of deadlocks).
void Accelerator::record_reduction(nn::Recording& recording) {
  std::vector<at::Tensor> gradients, buffers;
  std::uint64_t signature = 1;
  for (const auto& reducer : prepared_.reducers) {
    reducer->forget_pass();
    for (const auto& [name, parameter] : reducer->parameters()) {
      const at::Tensor& gradient = parameter.grad();
      signature = signature * 31 + (gradient.defined() ? 2 : 1);
      if (!gradient.defined()) continue;
      if (gradient.is_sparse()) throw ConfigError("the gradient of " + name + " is sparse");
      gradients.push_back(gradient.detach());
    }
    const auto& of_model = reducer->synchronized_buffers();
    buffers.insert(buffers.end(), of_model.begin(), of_model.end());
  }
  if (world_size() == 1 || gradients.empty()) return;
  recording.between(
      [this, gradients, buffers]() mutable {
        const at::NoGradGuard no_grad;
        const trace::Range range(trace::Event::gradient_wait);
        context_.communicator->all_reduce(gradients, comm::ReduceOp::mean);
        if (!buffers.empty()) context_.communicator->broadcast(buffers, 0);
      },
      signature);
}

}  // namespace tandem
