// What a session's host asks for while it trains: with one process between two steps, where the StepGate has all ranks
// stop; with several nodes where these agree on it.
#include <utility>

#include "backend/device_memory.h"
#include "backend/rank_memory.h"
#include "comm/error_text.h"
#include "session/session_run.h"
#include "session/weight_copies.h"
#include "tandem/comm/object_bytes.h"
#include "tandem/core/error.h"

namespace tandem {
namespace {

// What its allocators keep of a rank's memory goes back to its device.
void release_memory(c10::Device device) {
  free_rank_memory();
  free_device_memory(device);
}

}  // namespace

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
  if (rank.local_rank() == 0) {
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
    save(asked, rank.local_rank());
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

}  // namespace tandem
