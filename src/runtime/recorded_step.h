// Steps that are recorded as graphs of the device, and replayed.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "backend/graph.h"
#include "nn/recording.h"
#include "runtime/rank_context.h"
#include "runtime/step_timing.h"
#include "tandem/runtime/detail/step_graph.h"

namespace tandem {

/// Records what the rank's thread enqueues in as many graphs as there are pieces between work that cannot be recorded.
class RecordedStep final : public detail::StepGraph, public nn::Recording {
 public:
  /// `options` is what compile_step was asked for. `parameters` gives those whose gradients a step may replace;
  /// `obstacle` why steps cannot be recorded as things are, the same on all ranks.
  RecordedStep(RankContext& context, const CompileStepOptions& options,
               std::function<std::vector<at::Tensor>()> parameters,
               std::function<std::optional<std::string>()> obstacle);
  ~RecordedStep() override;
  RecordedStep(const RecordedStep&) = delete;
  RecordedStep& operator=(const RecordedStep&) = delete;

  Turn next(const std::vector<at::Tensor>& inputs) override;
  void rehearse(const std::function<void()>& step) override;
  bool record(const MakeInputs& make_inputs, const std::function<void()>& step) override;
  void replay(const std::vector<at::Tensor>& inputs) override;
  const std::string& reason() const override { return reason_; }
  const std::vector<at::Tensor>& inputs() const override { return inputs_; }
  std::int64_t replays() const override { return replays_; }
  const std::optional<StepTimes>& times() const override { return timing_.times(); }

  bool records() const override { return recording_; }
  void at_each_replay(HostWork work) override { host_work_.push_back(std::move(work)); }
  void between(std::function<void()> work, std::uint64_t signature) override;

 private:
  struct Piece {
    std::unique_ptr<Graph> graph;
    std::function<void()> then;  // empty: nothing
  };

  // A parameter when the step was recorded, and its gradient before and after.
  struct Seen {
    at::Tensor parameter;
    const void* data;
    bool trained;
    at::Tensor before, after;
    bool drops;  // the step drops the one before, and does not look at it
  };

  void choose();
  std::size_t rehearsals_wanted() const;
  void check_room() const;
  Turn wanted(const std::vector<at::Tensor>& inputs);
  std::uint64_t meet(std::uint64_t mine, bool& alike) const;
  std::optional<std::string> other_inputs(const std::vector<at::Tensor>& inputs) const;
  std::optional<std::string> change() const;
  void begin_piece();
  void record_pieces(const std::function<void()>& step);
  std::string try_to_record(const MakeInputs& make_inputs, const std::function<void()>& step);
  void do_step(const std::vector<at::Tensor>& inputs);
  void run_pieces(const std::vector<at::Tensor>& inputs);
  void give_up(const std::string& why);
  void forget();

  RankContext& context_;
  const CompileStepOptions options_;
  const std::function<std::vector<at::Tensor>()> parameters_;
  const std::function<std::optional<std::string>()> obstacle_;
  StepTiming timing_;
  std::size_t rehearsals_ = 0;
  bool recording_ = false;
  int vain_recordings_ = 0;   // that were replayed for the recorded call only, one after the other
  bool fresh_ = false;        // nothing but that call has been replayed
  std::string given_up_;      // why; empty: not
  bool all_gave_up_ = false;  // all ranks did, and need not ask each other any more
  std::string reason_;
  std::vector<Piece> pieces_;
  std::vector<HostWork> host_work_;
  std::vector<at::Tensor> inputs_;  // that were recorded with
  std::vector<Seen> seen_;
  std::uint64_t signature_ = 0;  // of what is done between pieces
  std::int64_t replays_ = 0;
};

}  // namespace tandem
