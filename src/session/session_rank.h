// A rank's part of a session.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <set>

#include <ATen/core/Tensor.h>

#include "core/step_gate.h"
#include "data/loader_context.h"
#include "runtime/rank_training.h"
#include "runtime/step_observer.h"
#include "tandem/comm/deferred_scalars.h"
#include "tandem/session/session.h"

namespace tandem {

/// Sees the steps of one rank, and has it stop at the session's gate between them. Belongs to the rank's thread.
class SessionRank final : public StepObserver {
 public:
  using Clock = std::chrono::steady_clock;

  /// `publish`: takes what rank 0 has come to, at most once an `interval`, and with `every_epoch` where one begins;
  /// empty on the others. `agree`: with several nodes is called by all ranks at the same place after each window, but
  /// not within a join_uneven_inputs; empty for one process.
  SessionRank(RankTraining& training, StepGate& gate, std::function<void(const Progress&)> publish,
              std::chrono::nanoseconds interval, bool every_epoch, std::function<void(SessionRank&)> agree);

  RankTraining& training() const { return training_; }

  int local_rank() const { return context_.local_rank(); }  ///< by which the gate knows it

  bool before_batch(const data::EpochPosition& position) override;
  void before_micro_batch() override;
  void after_backward(const at::Tensor& loss) override {
    if (publish_) loss_ = loss.detach();
  }
  void after_window() noexcept override;
  bool stop_requested() const override { return stops_ && window_is_closed(); }
  void set_total_steps(std::int64_t steps) override { progress_.total_steps = steps; }
  void continue_at(std::int64_t step) override;
  void step_aside() override { gate_.step_aside(context_.local_rank()); }
  void come_back() override { gate_.come_back(context_.local_rank()); }

  /// Between two windows, with every batch used that a loader has given for training.
  bool is_between_steps() const;

  /// With a batch in hand that is not used yet, and no window open.
  bool has_unused_batch() const;

  /// Between steps, and in no loop over another loader, whose rest would be all that the next loop over it has.
  bool can_be_saved() const;

  void stop() { stops_ = true; }

  const Progress& progress() const { return progress_; }

  /// Publishes where rank 0 is; `with_loss`: waits for the last one.
  void publish_now(bool with_loss);

 private:
  template <class Pass>
  void stand_still_in(const Pass& pass);
  void agree_if_due();
  bool window_is_closed() const;
  void note_what_trains();
  void publish_if_due(bool epoch_begins) noexcept;
  void publish(Clock::time_point now);
  void read_loss(bool wait);

  RankTraining& training_;
  RankContext& context_;
  StepGate& gate_;
  const std::function<void(const Progress&)> publish_;
  const std::function<void(SessionRank&)> agree_;
  bool agreement_is_due_ = true;
  const std::chrono::nanoseconds interval_;
  const bool every_epoch_;
  bool stops_ = false;
  bool takes_batch_ = false;  // at the gate before a batch
  bool has_closed_window_ = false;
  // Loaders by their numbers.
  std::uint64_t loader_ = 0;                            // that is asked for a batch, or gave the last
  std::map<const data::StepInfo*, std::uint64_t> all_;  // by their status
  std::set<std::uint64_t> trained_on_;
  std::set<std::uint64_t> given_;  // whose batch is not used yet

  Progress progress_;
  std::int64_t epoch_begun_ = -1;
  Clock::time_point published_;
  std::int64_t published_step_ = 0;
  std::chrono::duration<double> stood_still_{0};  // since the last publishing
  at::Tensor loss_;                               // of the last micro-batch
  comm::DeferredScalars losses_;                  // on their way here
};

}  // namespace tandem
