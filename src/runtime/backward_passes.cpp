#include "runtime/backward_passes.h"

#include <vector>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "runtime/exact_training.h"
#include "runtime/step_observer.h"
#include "tandem/core/error.h"
#include "tandem/trace/range.h"

namespace tandem {
namespace {

bool retains(BackwardOptions options) { return options.retain_graph || options.create_graph; }

}  // namespace

void BackwardPasses::run(const at::Tensor& loss, BackwardOptions options) {
  const trace::Range range(trace::Event::backward);
  nn::AccumulationWindow& window = context_.window;
  context_.group->token().check();
  window.check_mean();
  if (context_.observer) context_.observer->after_backward(loss);
  const at::Tensor mean = window.divisor() > 1 ? loss / window.divisor() : loss;
  window.use_mean();
  if (exact_) return run_exactly(mean, options, /*items=*/false);
  parts_.reducers.keep_apart(!window.closes_window() || (join_.active() && !window.reduces()));
  if (window.reduces())
    run_and_reduce(mean, options, join_.meet(Join::Turn::reduces_mean));
  else
    run_alone(mean, options);
  if (!window.pass_is_window()) return;
  window.forget_mean();
  end_window();
}

void BackwardPasses::run(const at::Tensor& loss_sum, double items, BackwardOptions options) {
  const trace::Range range(trace::Event::backward);
  nn::AccumulationWindow& window = context_.window;
  context_.group->token().check();
  if (window.records()) throw ConfigError("backward(loss_sum, items) asks the other ranks; use backward(loss)");
  window.check_items(items);
  if (context_.observer && items > 0) context_.observer->after_backward(loss_sum / items);
  const double all_of_window = window.use_items(items);
  if (exact_) {
    exact_->use_items(items);
    return run_exactly(loss_sum, options, /*items=*/true);
  }
  parts_.reducers.keep_apart(!window.pass_ends_sums());
  if (window.pass_ends_sums())
    run_sum(loss_sum, all_of_window, options);
  else if (window.reduces())
    run_and_reduce(loss_sum, options, join_.meet(Join::Turn::reduces_mean));
  else
    run_alone(loss_sum, options);
}

// The gradients of a logical shard, and those of the window when it closes.
void BackwardPasses::run_exactly(const at::Tensor& loss, BackwardOptions options, bool items) {
  warnings_.look_for_raw_forward();
  parts_.reducers.before_pass();
  const at::Tensor as_autograd_sees_it = scaled(loss);
  exact_->before_pass(items);
  as_autograd_sees_it.backward({}, retains(options), options.create_graph);
  exact_->after_pass();
  if (!context_.window.closes_window()) return;
  if (!join_.active()) warnings_.look_for_other_weights();  // ranks that have ended do not come
  exact_->reduce(items);
  if (items) context_.window.reduce_items();
}

// The last of a window, whose gradients become the mean over its items: those of all ranks, or of this one.
void BackwardPasses::run_sum(const at::Tensor& loss_sum, double all_of_window, BackwardOptions options) {
  nn::AccumulationWindow& window = context_.window;
  const bool reduces = window.reduces();
  const int main = reduces ? join_.meet(Join::Turn::reduces_items) : 0;
  const double factor = reduces             ? factor_over_items(context_, all_of_window)
                        : all_of_window > 0 ? 1 / all_of_window
                                            : 0;
  window.set_loss_factor(factor);
  parts_.scale_window(factor);
  if (reduces)
    run_and_reduce(loss_sum * factor, options, main);
  else
    run_alone(loss_sum * factor, options);
  window.reduce_items();
  if (!window.pass_is_window()) return;
  window.begin();
  end_window();
}

// `loss` as autograd is to see it.
at::Tensor BackwardPasses::scaled(const at::Tensor& loss) {
  if (!parts_.scaler) return loss;
  optim::GradScaler& scaler = *parts_.scaler;
  if (!context_.window.in_micro_batch() && scaler.has_stepped()) scaler.begin_iteration();
  if (!scaler.has_rescaled()) {
    std::vector<const torch::optim::Optimizer*> optimizers;
    for (const auto& optimizer : parts_.alive_optimizers()) optimizers.push_back(&optimizer.inner());
    scaler.rescale_kept(optimizers);
  }
  return scaler.scale(loss);
}

void BackwardPasses::run_alone(const at::Tensor& loss, BackwardOptions options) {
  parts_.reducers.before_pass();
  scaled(loss).backward({}, retains(options), options.create_graph);
}

// Buffers become rank `main`'s.
void BackwardPasses::run_and_reduce(const at::Tensor& loss, BackwardOptions options, int main) {
  warnings_.look_for_raw_forward();
  if (nn::Recording* recording = context_.window.records()) {
    run_alone(loss, options);
    return recorder_.record_reduction(*recording);
  }
  parts_.reducers.before_pass();
  const at::Tensor as_autograd_sees_it = scaled(loss);
  parts_.reducers.begin_pass();
  as_autograd_sees_it.backward({}, retains(options), options.create_graph);
  parts_.reducers.finish_pass(main);
  if (!join_.active()) warnings_.look_for_other_weights();  // ranks that have ended do not come
}

void BackwardPasses::end_window() {
  parts_.begin_window();
  if (context_.observer) context_.observer->after_window();
}

// Gradients are reduced by the closure's backward passes. The loss has to be one for all ranks too: the optimizer
// decides by it what it evaluates next.
at::Tensor BackwardPasses::evaluate(const std::function<at::Tensor()>& closure) {
  context_.group->token().check();
  const nn::AccumulationWindow::Evaluation scope(context_.window);
  parts_.begin_window();
  const at::Tensor loss = closure();
  const double factor = context_.window.loss_factor();
  if (context_.world_size() == 1 || !context_.window.reduces() || !loss.defined())
    return loss.defined() && factor != 1 ? loss.detach() * factor : loss;
  if (parts_.has_local_gradients())
    throw ConfigError("the closure of step(closure) has left gradients of rank " + std::to_string(context_.rank) +
                      " alone: write accelerator.backward(loss) in it for loss.backward()");
  const at::NoGradGuard no_grad;
  at::Tensor mean = loss.detach() * factor;
  context_.communicator->all_reduce(mean, comm::ReduceOp::mean);
  return mean;
}

}  // namespace tandem
