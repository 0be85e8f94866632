#include "session/session_run.h"

#include <algorithm>
#include <limits>
#include <utility>

#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>

#include "backend/device_memory.h"
#include "backend/rank_memory.h"
#include "comm/error_text.h"
#include "io/model_weights.h"
#include "tandem/comm/object_bytes.h"
#include "tandem/core/error.h"

namespace tandem {
namespace {

io::NamedTensors copies_on_cpu(const torch::nn::Module& module) {
  const c10::InferenceMode normal(false);  // whatever the body is doing
  const at::NoGradGuard no_grad;
  const OtherMemoryScope memory;
  io::NamedTensors weights = io::weights_of(module);
  for (auto& [name, tensor] : weights) tensor = tensor.detach().to(at::kCPU, /*non_blocking=*/false, /*copy=*/true);
  return weights;
}

// Gives `take` weights of its own, or the error when there are none.
void give_copy(const std::shared_ptr<const ModelSnapshot>& weights, const SessionRun::TakeSnapshot& take,
               std::exception_ptr error) {
  std::shared_ptr<ModelSnapshot> copy;
  if (weights) try {
      copy = std::make_shared<ModelSnapshot>(*weights);
      for (io::NamedTensors& model : copy->models)
        for (auto& [name, tensor] : model) tensor = tensor.clone();
    } catch (...) {  // for lack of memory
      copy = nullptr;
      error = std::current_exception();
    }
  take(copy, copy ? nullptr : error);
}

// What its allocators keep of a rank's memory goes back to its device.
void release_memory(c10::Device device) {
  free_rank_memory();
  free_device_memory(device);
}

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
  if (context.rank == context.group->place().first_rank)
    publish = [this](const Progress& progress) { set_progress(progress); };
  std::function<void(SessionRank&)> agrees;
  if (spans_nodes()) agrees = [this](SessionRank& one) { agree(one); };
  constexpr std::chrono::nanoseconds kInterval = std::chrono::milliseconds(16);  // people see 60 pictures a second
  auto rank =
      std::make_unique<SessionRank>(training, *gate_, std::move(publish), std::min(kInterval, pace_.step_interval),
                                    pace_.every_epoch, std::move(agrees));
  context.observer = rank.get();
  const auto number = static_cast<std::size_t>(rank->number());
  by_rank_[number] = std::move(rank);
}

void SessionRun::body_ended(RankTraining& training) {
  if (training.context.rank != training.context.group->place().first_rank) return;
  of_rank(0).publish_now(true);
  final_models_ = training.modules();
}

void SessionRun::after_body(RankTraining& training) noexcept {
  RankContext& context = training.context;
  const int number = context.rank - context.group->place().first_rank;
  of_rank(number).publish_now(false);
  context.observer = nullptr;
  gate_->leave(number);
  by_rank_[static_cast<std::size_t>(number)].reset();
}

void SessionRun::rank_ended() noexcept {
  const std::lock_guard lock(mutex_);
  ranks_ -= 1;
  changed_.notify_all();
}

// ---- what the host asks for

bool SessionRun::is_active(const std::unique_lock<std::mutex>&) const { return !ended_ && !cancel_.stop_requested(); }

void SessionRun::ask(const std::unique_lock<std::mutex>&, GateRequest request) {
  if (gate_)
    request(*gate_);
  else
    early_.push_back(std::move(request));
}

// With several nodes, at a place where all ranks come together: does what the hosts of the nodes have asked for, where
// it can be done now. Collective over all nodes.
void SessionRun::agree(SessionRank& rank) {
  constexpr std::uint64_t kStop = 1, kSave = 2, kCannotStop = 4, kCannotSave = 8;
  RankContext& context = rank.training().context;
  std::shared_ptr<Save> asked;
  std::uint64_t said = (rank.is_between_steps() ? 0 : kCannotStop) | (rank.can_be_saved() ? 0 : kCannotSave);
  if (rank.number() == 0) {
    const std::lock_guard lock(mutex_);
    asked = first_save();
    said |= (stop_is_asked_ ? kStop : 0) | (asked ? kSave : 0);
  }
  std::uint64_t all = 0;
  const comm::CallRecord record{.operation = "session"};
  for (const std::uint64_t one : context.group->meet(context.rank, record, said)) all |= one;
  if ((all & (kSave | kCannotSave)) == kSave) {
    // Rank 0's, as no other node's session takes any.
    const auto pack = [](Save& one) {
      return comm::pack(one.directory, one.options.background, one.options.when_busy, one.options.max_shard_bytes);
    };
    const std::string of_main = context.group->gather_bytes(context.rank, record, asked ? pack(*asked) : "")[0];
    if (asked) {
      asked->begun = true;
    } else {
      asked = std::make_shared<Save>();
      comm::unpack(of_main, asked->directory, asked->options.background, asked->options.when_busy,
                   asked->options.max_shard_bytes);
    }
    save(asked, rank.number());
  }
  if ((all & (kStop | kCannotStop)) == kStop) rank.stop();
}

// That waits for a place where all nodes' ranks are; null: none does. Under the mutex.
std::shared_ptr<SessionRun::Save> SessionRun::first_save() const {
  for (const auto& save : saves_)
    if (!save->done && !save->begun) return save;
  return nullptr;
}

void SessionRun::pause(PauseOptions options) {
  if (spans_nodes())
    throw ConfigError(
        "pause with several machines is not there yet: the others would wait; stop, and go on from a "
        "checkpoint");
  std::unique_lock lock(mutex_);
  if (!is_active(lock) || stop_is_asked_ || pause_is_asked_) return;
  pause_is_asked_ = true;
  change_state(SessionState::pausing);
  // Not with a batch in hand if the next place will do: there the state can be saved. At most one place later, for
  // there are bodies that never use it.
  const auto put_off = std::make_shared<std::vector<char>>();  // by rank
  ask(lock, [this, options, put_off](StepGate& gate) {
    put_off->resize(by_rank_.size());
    gate.add(
        {.may_run =
             [this, put_off](int rank, const StepGate::Standing&) {
               const bool first = !std::exchange((*put_off)[static_cast<std::size_t>(rank)], 1);
               return !first || !of_rank(rank).has_unused_batch();
             },
         .run = [this, options](int rank,
                                const StepGate::Standing& standing) { stand(rank, rank == standing.first, options); }});
  });
}

void SessionRun::stand(int rank, bool is_first, PauseOptions options) {
  {
    const std::lock_guard lock(mutex_);
    if (!pause_is_asked_) return;
  }
  if (options.release_memory) release_memory(of_rank(rank).training().context.device());
  of_rank(rank).publish_now(false);
  const std::lock_guard lock(mutex_);
  if (!pause_is_asked_) return;
  gate_->hold();
  // Rank 0, if it is there: its progress is up to date when others hear of the pause.
  if (!is_first || progress_.state != SessionState::pausing) return;
  change_state(SessionState::paused);
  post(SessionEvent::Kind::paused);
}

void SessionRun::resume() {
  std::unique_lock lock(mutex_);
  if (!is_active(lock) || !std::exchange(pause_is_asked_, false)) return;
  const bool stood_still = progress_.state == SessionState::paused;
  change_state(gate_ ? SessionState::running : SessionState::starting);
  if (stood_still) post(SessionEvent::Kind::resumed);
  ask(lock, [](StepGate& gate) { gate.release(); });
}

void SessionRun::request_stop() {
  std::unique_lock lock(mutex_);
  if (!is_active(lock) || std::exchange(stop_is_asked_, true)) return;
  pause_is_asked_ = false;
  change_state(SessionState::stopping);
  if (spans_nodes()) return;  // see agree
  // Each rank must see it at the same place, and none may have a batch by then that it would not train on.
  ask(lock, [this](StepGate& gate) {
    gate.add({.may_run =
                  [this](int rank, const StepGate::Standing& standing) {
                    return standing.aside == 0 && standing.same_place && of_rank(rank).is_between_steps();
                  },
              .run = [this](int rank, const StepGate::Standing&) { of_rank(rank).stop(); }});
    gate.release();
  });
}

void SessionRun::cancel() { cancel_.request_stop(); }

void SessionRun::fail(std::exception_ptr error) {
  {
    const std::lock_guard lock(mutex_);
    if (!host_error_) host_error_ = error;
    if (ended_ && !error_) {
      error_ = error;
      error_text_ = text_of(error);
      change_state(SessionState::failed);
    }
  }
  cancel();
}

void SessionRun::save_now(const std::string& directory, const SaveStateOptions& options, SaveWritten answer) {
  auto save = std::make_shared<Save>(Save{directory, options, std::move(answer), false});
  std::unique_lock lock(mutex_);
  if (!is_active(lock)) {
    lock.unlock();
    return save->answer({}, std::make_exception_ptr(Error("nothing was saved: the training has ended")));
  }
  if (nodes_.node > 0) {
    lock.unlock();
    return save->answer({}, std::make_exception_ptr(ConfigError(
                                "nothing was saved: with several machines only the session of node 0 saves")));
  }
  std::erase_if(saves_, [](const auto& other) { return other->done; });
  saves_.push_back(save);
  if (spans_nodes()) return;  // see agree
  ask(lock, [this, save](StepGate& gate) {
    gate.add({.may_run =
                  [this](int rank, const StepGate::Standing& standing) {
                    return standing.aside + standing.left == 0 && standing.same_place && of_rank(rank).can_be_saved();
                  },
              .run = [this, save](int rank, const StepGate::Standing&) { this->save(save, rank); }});
  });
}

// Collective.
void SessionRun::save(const std::shared_ptr<Save>& save, int rank) {
  std::string directory;
  std::exception_ptr error;
  // A rank that is left behind, stuck, leaves the thread that writes behind too.
  const auto written = [weak = weak_from_this(), save](const std::string& where, const std::exception_ptr& problem) {
    if (const auto run = weak.lock()) run->end_save(*save, where, problem);
  };
  try {
    directory = of_rank(rank).training().save_state(save->directory, save->options, written);
  } catch (const CheckpointError&) {  // on all ranks, as the next
    error = std::current_exception();
  } catch (const ConfigError&) {
    error = std::current_exception();
  }
  if (!of_rank(rank).training().context.is_main()) return;
  if (error || directory.empty() || !save->options.background) end_save(*save, directory, error);
}

// Without a directory it was left out.
void SessionRun::end_save(Save& save, const std::string& directory, const std::exception_ptr& error) {
  const std::lock_guard lock(mutex_);
  if (std::exchange(save.done, true)) return;
  save.answer(error ? std::string() : directory, error);
  if (error)
    post(SessionEvent::Kind::save_failed, text_of(error));
  else if (!directory.empty())
    post(SessionEvent::Kind::saved, directory);
}

void SessionRun::snapshot(TakeSnapshot take) {
  std::unique_lock lock(mutex_);
  if (is_active(lock)) {
    auto request = std::make_shared<SnapshotRequest>(SnapshotRequest{std::move(take)});
    std::erase_if(snapshots_, [](const auto& other) { return other->done; });
    snapshots_.push_back(request);
    return ask(lock, [this, request](StepGate& gate) {
      gate.add({.may_run = [this](int rank,
                                  const StepGate::Standing&) { return !of_rank(rank).training().modules().empty(); },
                .run =
                    [this, request](int rank, const StepGate::Standing& standing) {
                      if (rank == standing.first) copy_weights(*request, rank);
                    }});
    });
  }
  const auto weights = final_weights_;
  const bool ended_well = progress_.state == SessionState::ended;
  lock.unlock();
  give_copy(weights, take,
            std::make_exception_ptr(
                Error(ended_well ? "there are no weights: no model was prepared, or there was no memory for a copy"
                                 : "there are no weights: the training has not ended well")));
}

// Nobody changes the weights meanwhile: all stand at the gate, or wait for others, or have ended.
void SessionRun::copy_weights(SnapshotRequest& request, int rank) {
  auto weights = std::make_shared<ModelSnapshot>();
  std::exception_ptr error;
  try {
    const Progress& progress = of_rank(rank).progress();
    weights->step = progress.step;
    weights->epoch = progress.epoch;
    for (const auto& model : of_rank(rank).training().modules()) weights->models.push_back(copies_on_cpu(*model));
  } catch (...) {  // for lack of memory
    error = std::current_exception();
  }
  {
    const std::lock_guard lock(mutex_);
    request.done = true;
  }
  request.take(error ? nullptr : weights, error);
  request.take = nullptr;
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
