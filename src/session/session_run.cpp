#include "session/session_run.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "comm/error_text.h"
#include "session/weight_copies.h"
#include "tandem/core/error.h"

namespace tandem {
namespace {

// Whether the caller ended the launch, and no rank had failed before.
bool is_cancellation(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const RankError& failure) {
    return failure.rank() < 0;
  } catch (...) {
    return false;
  }
}

}  // namespace

SessionRun::SessionRun(LaunchConfig config, std::function<void(Accelerator&)> body, SessionEvents& events,
                       Published<Progress>& progress, EventPace pace)
    : config_(std::move(config)),
      nodes_(config_.nodes.value_or(Nodes())),
      body_(std::move(body)),
      events_(events),
      published_(progress),
      pace_(pace) {
  progress_.state = SessionState::starting;
  progress_.loss = std::numeric_limits<double>::quiet_NaN();
  published_.store(progress_);
}

void SessionRun::execute() noexcept {
  std::exception_ptr error;
  try {
    run_launch();
    take_final_weights();
  } catch (...) {
    error = std::current_exception();
  }
  answer_what_is_left(error);  // a callback may wait for it, and the session for the callback when it is captured
  body_ = nullptr;             // with what it has captured
  end(error);
}

void SessionRun::run_launch() {
  const std::stop_callback chained(config_.cancel, [this] { cancel(); });
  LaunchConfig config = std::exchange(config_, {});
  config.cancel = cancel_.get_token();
  launch(config, body_, this);
}

// ---- what the launch tells

void SessionRun::before_ranks(comm::RankGroup& group) {
  const comm::NodePlace& place = group.place();
  by_rank_.resize(static_cast<std::size_t>(place.local_ranks));
  const std::lock_guard lock(mutex_);
  ranks_ = place.local_ranks;
  gate_.emplace(ranks_, group.token(), [&group, &place](int rank) { return group.waits(place.first_rank + rank); });
  for (const GateRequest& request : std::exchange(early_, {})) request(*gate_);
  if (progress_.state == SessionState::starting) change_state(SessionState::running);
  post(SessionEvent::Kind::started);
}

void SessionRun::after_ranks() noexcept {
  const std::lock_guard lock(mutex_);
  gate_.reset();
}

bool SessionRun::holds_ranks() const {
  const std::lock_guard lock(mutex_);
  return gate_ && gate_->holds();
}

void SessionRun::before_body(RankTraining& training) {
  RankContext& context = training.context;
  std::function<void(const Progress&)> publish;
  if (context.local_rank() == 0) publish = [this](const Progress& progress) { set_progress(progress); };
  std::function<void(SessionRank&)> agrees;
  if (spans_nodes()) agrees = [this](SessionRank& one) { agree(one); };
  constexpr std::chrono::nanoseconds kInterval = std::chrono::milliseconds(16);  // people see 60 pictures a second
  auto rank =
      std::make_unique<SessionRank>(training, *gate_, std::move(publish), std::min(kInterval, pace_.step_interval),
                                    pace_.every_epoch, std::move(agrees));
  context.observer = rank.get();
  by_rank_[static_cast<std::size_t>(context.local_rank())] = std::move(rank);
}

void SessionRun::body_ended(RankTraining& training) {
  if (training.context.local_rank() != 0) return;
  of_rank(0).publish_now(true);
  final_models_ = training.modules();
}

void SessionRun::after_body(RankTraining& training) noexcept {
  RankContext& context = training.context;
  const int rank = context.local_rank();
  of_rank(rank).publish_now(false);
  context.observer = nullptr;
  gate_->leave(rank);
  by_rank_[static_cast<std::size_t>(rank)].reset();
}

void SessionRun::rank_ended() noexcept {
  const std::lock_guard lock(mutex_);
  ranks_ -= 1;
  changed_.notify_all();
}

// ---- what it has come to

void SessionRun::set_progress(const Progress& progress) {
  const std::lock_guard lock(mutex_);
  const SessionState state = progress_.state;
  progress_ = progress;
  progress_.state = state;
  published_.store(progress_);
  // What has no loaders has no epochs.
  const bool has_epoch = progress.epoch_steps >= 0 || progress.epoch > 0 || progress.epoch_step > 0;
  if (has_epoch && std::exchange(epoch_posted_, progress.epoch) != progress.epoch) post(SessionEvent::Kind::epoch);
  const auto now = std::chrono::steady_clock::now();
  if (progress.step == step_posted_ || now - step_posted_at_ < pace_.step_interval) return;
  step_posted_ = progress.step;
  step_posted_at_ = now;
  post(SessionEvent::Kind::step);
}

void SessionRun::change_state(SessionState state) {
  progress_.state = state;
  if (!retired_) published_.store(progress_);
}

void SessionRun::post(SessionEvent::Kind kind, std::string text) {
  events_.post(SessionEvent{.kind = kind, .progress = progress_, .text = std::move(text)}, on_error());
}

std::function<void(std::exception_ptr)> SessionRun::on_error() {
  return [weak = weak_from_this()](const std::exception_ptr& error) {
    if (const auto run = weak.lock()) run->fail(error);
  };
}

void SessionRun::retire() {
  const std::lock_guard lock(mutex_);
  retired_ = true;
}

// Nobody else has the models any more, and what the devices had to do is done.
void SessionRun::take_final_weights() noexcept {
  try {
    if (final_models_.empty()) return;
    auto weights = std::make_shared<ModelSnapshot>();
    for (const auto& model : std::exchange(final_models_, {})) weights->models.push_back(copies_on_cpu(*model));
    const std::lock_guard lock(mutex_);
    weights->step = progress_.step;
    weights->epoch = progress_.epoch;
    final_weights_ = std::move(weights);
  } catch (...) {
    // For lack of memory: the training has ended well all the same, and a snapshot says that there is none.
  }
}

// What the end of the launch means. Under the mutex, as the next.
SessionRun::Outcome SessionRun::outcome_of(const std::exception_ptr& error) const {
  using Kind = SessionEvent::Kind;
  if (host_error_) return {SessionState::failed, Kind::failed, host_error_};
  if (!error) return {SessionState::ended, Kind::ended, nullptr};
  if (cancel_.stop_requested() && is_cancellation(error)) return {SessionState::cancelled, Kind::cancelled, nullptr};
  return {SessionState::failed, Kind::failed, error};
}

// Fails the saves that are left. Returns what answers the snapshots, to be called without the mutex.
std::function<void()> SessionRun::answer_requests(const Outcome& outcome) {
  const auto problem = std::make_exception_ptr(Error(
      outcome.error ? "the training has failed before: " + text_of(outcome.error) : "the training has ended before"));
  for (const auto& save : std::exchange(saves_, {})) {
    if (std::exchange(save->done, true)) continue;
    save->answer({}, problem);
    post(SessionEvent::Kind::save_failed, text_of(problem));
  }
  const auto weights = outcome.state == SessionState::ended ? final_weights_ : nullptr;
  return [problem, weights, snapshots = std::exchange(snapshots_, {})] {
    for (const auto& request : snapshots)
      if (!request->done) give_copy(weights, request->take, problem);
  };
}

void SessionRun::answer_what_is_left(const std::exception_ptr& error) {
  std::unique_lock lock(mutex_);
  const auto answer_snapshots = answer_requests(outcome_of(error));
  lock.unlock();
  answer_snapshots();
}

void SessionRun::end(const std::exception_ptr& error) noexcept {
  final_models_.clear();
  std::unique_lock lock(mutex_);
  const Outcome outcome = outcome_of(error);
  error_ = outcome.error;
  if (error_) error_text_ = text_of(error_);
  change_state(outcome.state);
  early_.clear();
  const auto answer_snapshots = answer_requests(outcome);
  post(outcome.event, error_text_);
  ended_ = true;
  changed_.notify_all();
  lock.unlock();
  answer_snapshots();
}

bool SessionRun::has_ended() const {
  const std::lock_guard lock(mutex_);
  return ended_;
}

bool SessionRun::wait_until(std::optional<std::chrono::steady_clock::time_point> time) const {
  std::unique_lock lock(mutex_);
  const auto ended = [this] { return ended_; };
  if (time) return changed_.wait_until(lock, *time, ended);
  changed_.wait(lock, ended);
  return true;
}

void SessionRun::wait_for_other_ranks() const {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, std::chrono::seconds(2), [this] { return ranks_ <= 1; });
}

void SessionRun::throw_if_failed() const {
  const std::lock_guard lock(mutex_);
  if (error_) std::rethrow_exception(error_);
}

Session::Status SessionRun::status() const {
  const std::lock_guard lock(mutex_);
  return {progress_.state, error_text_};
}

}  // namespace tandem
