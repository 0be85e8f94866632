#include "runtime/step_recorder.h"

#include <ATen/core/grad_mode.h>

#include "tandem/core/error.h"
#include "tandem/trace/range.h"

namespace tandem {

std::unique_ptr<detail::StepGraph> StepRecorder::make_graph(const CompileStepOptions& options) const {
  const auto parameters = [this] {
    std::vector<at::Tensor> all;
    for (const auto& reducer : parts_.reducers)
      for (const auto& [name, parameter] : reducer->parameters()) all.push_back(parameter);
    return all;
  };
  return std::make_unique<RecordedStep>(context_, options, parameters, [this, options] { return obstacle(options); });
}

std::optional<std::string> StepRecorder::obstacle(const CompileStepOptions& options) const {
  const nn::AccumulationWindow& window = context_.window;
  if (context_.device().is_cpu()) return "CPU ranks have no graphs";
  // Called steps reduce in buckets, replayed ones all at once.
  if (options.keep_faster && context_.world_size() > 2 && !context_.communicator->sums_in_rank_order())
    return "NCCL would sum more than two ranks' gradients in another order than in called steps";
  if (context_.config().exact) return "in exact mode a window is several passes, of one logical shard each";
  if (parts_.scaler) return "under fp16 the host decides whether an update is made";
  if (window.micro_batches() > 1) return "a window of several micro-batches is not recorded";
  if (window.reduction().no_sync) return "gradients are not reduced within no_sync";
  if (window.trains_alone()) return "ranks train on their own within local_sgd";
  if (join_.active()) return "ranks take different steps within join_uneven_inputs";
  for (const auto& optimizer : parts_.alive_optimizers())
    if (optim::sharded_of(optimizer)) return "updates are divided over the ranks";
  if (context_.config().gradient_reducer.check_finite) return "check_finite looks at each reduction's gradients";
  for (const auto& reducer : parts_.reducers)
    if (reducer->has_communication_hook()) return "a model has a communication hook";
  return std::nullopt;
}

// Gradients of a recorded backward pass are reduced when it has been replayed: kernels that wait for other ranks do not
// belong in graphs of several GPUs in one process (NCCL's documentation warns of deadlocks).
void StepRecorder::record_reduction(nn::Recording& recording) const {
  std::vector<at::Tensor> gradients, buffers;
  std::uint64_t signature = 1;
  for (const auto& reducer : parts_.reducers) {
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
  if (context_.world_size() == 1 || gradients.empty()) return;
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
