// What an Accelerator does about optimizers that evaluate the loss themselves.
#include <algorithm>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "runtime/step_follower.h"
#include "runtime/training_parts.h"
#include "tandem/core/error.h"
#include "tandem/runtime/accelerator.h"

namespace tandem {
namespace {

// While alive, backward passes are those of one evaluation: a window of one micro-batch, which stays open.
class EvaluationScope {
 public:
  explicit EvaluationScope(GradientState& state)
      : state_(state), inside_window_(state.inside_window), window_length_(state.window_length) {
    state.begin_window();
    state.in_closure = state.inside_window = true;
    state.window_length = 1;
    state.loss_factor = 1;
  }
  ~EvaluationScope() {
    state_.begin_window();
    state_.in_closure = false;
    state_.inside_window = inside_window_;
    state_.window_length = window_length_;
  }
  EvaluationScope(const EvaluationScope&) = delete;
  EvaluationScope& operator=(const EvaluationScope&) = delete;

 private:
  GradientState& state_;
  const bool inside_window_;
  const int window_length_;
};

}  // namespace

void Accelerator::step_with_closure(const optim::Closure& closure,
                                    const std::function<void(const optim::Closure&)>& step) {
  if (reductions_in_join_)
    throw ConfigError("step(closure) within join_uneven_inputs, whose ranks take different steps");
  step([&] { return evaluate(closure); });
  if (!context_.gradients.inside_window) end_window_of_pass();
}

// Gradients are reduced by the closure's backward passes. The loss has to be one for all ranks too: the optimizer
// decides by it what it evaluates next.
at::Tensor Accelerator::evaluate(const optim::Closure& closure) {
  context_.group->token().check();
  const EvaluationScope scope(context_.gradients);
  begin_window_of_gradients();
  const at::Tensor loss = closure();
  if (world_size() == 1 || !context_.gradients.reduces() || !loss.defined()) {
    const double factor = context_.gradients.loss_factor;
    return loss.defined() && factor != 1 ? loss.detach() * factor : loss;
  }
  const bool local = std::any_of(prepared_.reducers.begin(), prepared_.reducers.end(),
                                 [](const auto& reducer) { return reducer->has_local_gradients(); });
  if (local)
    throw ConfigError("the closure of step(closure) has left gradients of rank " + std::to_string(rank()) +
                      " alone: write accelerator.backward(loss) in it for loss.backward()");
  const at::NoGradGuard no_grad;
  at::Tensor mean = loss.detach() * context_.gradients.loss_factor;
  context_.communicator->all_reduce(mean, comm::ReduceOp::mean);
  return mean;
}

}  // namespace tandem
