#include "session/session_rank.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "session/end_at_exit.h"

namespace tandem {
namespace {

constexpr double kMemorySeconds = 3;  // of the smoothed rate

}  // namespace

SessionRank::SessionRank(RankTraining& training, StepGate& gate, std::function<void(const Progress&)> publish,
                         std::chrono::nanoseconds interval, bool every_epoch, std::function<void(SessionRank&)> agree)
    : training_(training),
      context_(training.context),
      gate_(gate),
      publish_(std::move(publish)),
      agree_(std::move(agree)),
      interval_(interval),
      every_epoch_(every_epoch),
      published_(Clock::now()) {
  progress_.loss = std::numeric_limits<double>::quiet_NaN();
}

void SessionRank::continue_at(std::int64_t step) {
  progress_.step = published_step_ = step;
  published_ = Clock::now();
  stood_still_ = {};
}

bool SessionRank::window_is_closed() const { return context_.window.is_between(); }

bool SessionRank::is_between_steps() const {
  // A loop that was left with a batch in hand does not use it any more.
  const auto has_given_for_training = [this](const data::StepInfo* status) {
    const auto loader = all_.find(status);
    return loader != all_.end() && given_.contains(loader->second) && trained_on_.contains(loader->second);
  };
  const auto& active = context_.window.loaders().all();
  return window_is_closed() && std::none_of(active.begin(), active.end(), has_given_for_training);
}

bool SessionRank::has_unused_batch() const { return window_is_closed() && !is_between_steps(); }

bool SessionRank::can_be_saved() const {
  const auto& active = context_.window.loaders().all();
  if (!is_between_steps() || (!active.empty() && !takes_batch_)) return false;
  return std::all_of(active.begin(), active.end(), [this](const data::StepInfo* status) {
    const auto loader = all_.find(status);
    return loader != all_.end() && trained_on_.contains(loader->second);
  });
}

// What the gate takes is no part of a step.
template <class Pass>
void SessionRank::stand_still_in(const Pass& pass) {
  const auto before = Clock::now();
  pass();
  stood_still_ += Clock::now() - before;
}

bool SessionRank::before_batch(const data::EpochPosition& position) {
  loader_ = position.loader;
  all_[position.status] = loader_;
  given_.erase(loader_);
  takes_batch_ = true;
  stand_still_in([&] { gate_.pass_batch(context_.local_rank()); });
  agree_if_due();
  takes_batch_ = false;
  if (stop_requested() && trained_on_.contains(loader_)) return false;
  given_.insert(loader_);
  progress_.epoch = position.epoch;
  progress_.epoch_step = position.step;
  progress_.epoch_steps = position.steps;
  publish_if_due(std::exchange(epoch_begun_, position.epoch) != position.epoch);
  return true;
}

void SessionRank::before_micro_batch() {
  note_what_trains();
  stand_still_in([&] { gate_.pass_micro_batch(context_.local_rank()); });
  agree_if_due();
}

void SessionRank::agree_if_due() {
  if (agree_ && !training_.join.active() && std::exchange(agreement_is_due_, false)) agree_(*this);
}

void SessionRank::note_what_trains() {
  for (const data::StepInfo* status : context_.window.loaders().all())
    if (const auto loader = all_.find(status); loader != all_.end()) trained_on_.insert(loader->second);
}

void SessionRank::after_window() noexcept {
  note_what_trains();  // also by backward passes outside of accumulate
  given_.clear();
  gate_.close_window(context_.local_rank());
  agreement_is_due_ = true;
  progress_.step += 1;
  if (!std::exchange(has_closed_window_, true)) outlive_what_was_made();
  publish_if_due(false);
}

void SessionRank::publish_if_due(bool epoch_begins) noexcept {
  if (!publish_) return;
  const auto now = Clock::now();
  if (now - published_ < interval_ && !(epoch_begins && every_epoch_)) return;
  try {
    publish(now);
  } catch (...) {
    // A device that has failed says so to the body.
  }
}

void SessionRank::publish_now(bool with_loss) {
  if (!publish_) return;
  if (with_loss) read_loss(true);
  publish_(progress_);
}

void SessionRank::publish(Clock::time_point now) {
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
    left = progress_.epoch_steps < 0 ? -1
                                     : (progress_.epoch_steps - progress_.epoch_step) / context_.window.micro_batches();
  const bool known = left >= 0 && progress_.steps_per_second > 0;
  progress_.seconds_left = known ? static_cast<double>(left) / progress_.steps_per_second : -1;
  publish_(progress_);
}

// A GPU's loss is fetched while training goes on, and is there at one of the next looks.
void SessionRank::read_loss(bool wait) {
  if (!loss_.defined()) return;
  losses_.deliver();
  if (losses_.pending() == 0 || wait)
    losses_.add({loss_}, [this](const comm::DeferredScalars::Arrived& loss) { progress_.loss = loss.of(0, 0); });
  if (wait) losses_.deliver_all();
}

}  // namespace tandem
