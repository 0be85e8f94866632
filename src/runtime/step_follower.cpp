#include "runtime/step_follower.h"

#include <cmath>
#include <limits>

#include <ATen/core/grad_mode.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "tandem/runtime/accelerator.h"

namespace tandem {
namespace {

constexpr auto kInterval = std::chrono::milliseconds(16);  // of publishing: people see 60 pictures a second
constexpr double kMemorySeconds = 3;                       // of the smoothed rate

}  // namespace

StepFollower::StepFollower(Accelerator& accelerator, RankContext& context, StepGate& gate,
                           std::function<void(const Progress&)> publish)
    : accelerator_(accelerator),
      context_(context),
      gate_(gate),
      publish_(std::move(publish)),
      published_(Clock::now()) {
  progress_.loss = std::numeric_limits<double>::quiet_NaN();
}

bool StepFollower::window_is_closed() const {
  return context_.gradients.window_length == 0 && !context_.gradients.inside_window;
}

bool StepFollower::can_be_saved() const {
  if (!window_is_closed()) return false;
  return takes_batch_ ? trained_on_.contains(loader_) : !context_.gradients.loaders.current();
}

// What the gate takes is no part of a step.
template <class Pass>
void StepFollower::stand_still_in(const Pass& pass) {
  const auto before = Clock::now();
  pass();
  stood_still_ += Clock::now() - before;
}

bool StepFollower::before_batch(const data::EpochPosition& position) {
  loader_ = position.loader;
  takes_batch_ = true;
  stand_still_in([&] { gate_.pass_batch(context_.rank); });
  takes_batch_ = false;
  if (stops_ && trained_on_.contains(loader_)) return false;
  progress_.epoch = position.epoch;
  progress_.epoch_step = position.step;
  progress_.epoch_steps = position.steps;
  return true;
}

void StepFollower::before_micro_batch() {
  if (context_.gradients.loaders.current()) trained_on_.insert(loader_);
  stand_still_in([&] { gate_.pass_micro_batch(context_.rank); });
}

void StepFollower::after_window() noexcept {
  progress_.step += 1;
  if (!publish_) return;
  const auto now = Clock::now();
  if (now - published_ < kInterval) return;
  try {
    publish(now);
  } catch (...) {
    // A device that has failed says so to the body.
  }
}

void StepFollower::publish(Clock::time_point now) {
  read_loss(false);
  const std::chrono::duration<double> passed = now - published_ - stood_still_;
  const double seconds = std::max(passed.count(), 1e-9);
  const double rate = static_cast<double>(progress_.step - published_step_) / seconds;
  const double weight = progress_.steps_per_second > 0 ? std::exp(-seconds / kMemorySeconds) : 0;
  progress_.steps_per_second = weight * progress_.steps_per_second + (1 - weight) * rate;
  published_ = now;
  published_step_ = progress_.step;
  stood_still_ = {};

  std::int64_t left = progress_.total_steps - progress_.step;
  if (progress_.total_steps < 0)
    left =
        progress_.epoch_steps < 0 ? -1 : (progress_.epoch_steps - progress_.epoch_step) / context_.gradients.num_steps;
  const bool known = left >= 0 && progress_.steps_per_second > 0;
  progress_.seconds_left = known ? static_cast<double>(left) / progress_.steps_per_second : -1;
  publish_(progress_);
}

// A GPU's loss is fetched while training goes on, and is there at one of the next looks.
void StepFollower::read_loss(bool wait) {
  const at::NoGradGuard no_grad;
  if (!loss_.defined()) return;
  if (loss_.device().is_cpu() || wait) {
    progress_.loss = loss_.item<double>();
    return;
  }
  if (arrives_) {
    if (!arrives_->query()) return;
    progress_.loss = on_host_.item<double>();
    arrives_.reset();
  }
  on_host_ = loss_.to(at::kCPU, /*non_blocking=*/true);
  arrives_.emplace(loss_.device().type());
  arrives_->record(c10::impl::VirtualGuardImpl(loss_.device().type()).getStream(loss_.device()));
}

const Progress& StepFollower::final_progress() {
  read_loss(true);
  return progress_;
}

}  // namespace tandem
