#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "tandem/backend/graph.h"
#include "tandem/nn/recording.h"
#include "tandem/runtime/state.h"

namespace tandem {

/// How one rank's calls of a compiled step go: some as they are, then one recorded, then replayed, where all ranks can.
/// Records what the rank's thread enqueues in as many graphs as there are pieces between work that cannot be recorded.
class StepGraph final : public nn::Recording {
 public:
  /// What a call does with the step.
  enum class Turn : std::uint8_t { call, rehearse, record, replay };

  /// `parameters` gives those whose gradients a step may replace; `obstacle` why steps cannot be recorded as things
  /// are, the same on all ranks.
  StepGraph(RankContext& context, std::function<std::vector<at::Tensor>()> parameters,
            std::function<std::optional<std::string>()> obstacle);
  ~StepGraph() override;
  StepGraph(const StepGraph&) = delete;
  StepGraph& operator=(const StepGraph&) = delete;

  /// What is to be done with a step of these arguments. Collective.
  Turn next(const std::vector<at::Tensor>& inputs);

  /// Calls `step` in the form in which it can be recorded.
  void rehearse(const std::function<void()>& step);

  using MakeInputs = std::function<std::vector<at::Tensor>()>;  ///< copies of a call's tensors, to be kept

  /// Calls `step` and records what it has the device do, which is not done then; returns true if that worked on all
  /// ranks. Otherwise it gives up for good; gradients, the device's generators and what prepared objects count are as
  /// before. Collective.
  bool record(const MakeInputs& make_inputs, const std::function<void()>& step);

  /// Does what was recorded, with the values of `inputs`. Collective.
  void replay(const std::vector<at::Tensor>& inputs);

  /// Why the last call was not replayed, when it might have been; empty otherwise.
  const std::string& reason() const { return reason_; }

  /// The tensors that were recorded with.
  const std::vector<at::Tensor>& inputs() const { return inputs_; }

  /// Calls replayed so far.
  std::int64_t replays() const { return replays_; }

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

  Turn wanted(const std::vector<at::Tensor>& inputs);
  std::uint64_t meet(std::uint64_t mine, bool& alike) const;
  std::optional<std::string> other_inputs(const std::vector<at::Tensor>& inputs) const;
  std::optional<std::string> change() const;
  void begin_piece();
  void record_pieces(const std::function<void()>& step);
  std::string try_to_record(const MakeInputs& make_inputs, const std::function<void()>& step);
  void run_pieces(const std::vector<at::Tensor>& inputs);
  void give_up(const std::string& why);
  void forget();

  RankContext& context_;
  const std::function<std::vector<at::Tensor>()> parameters_;
  const std::function<std::optional<std::string>()> obstacle_;
  int rehearsals_ = 0;
  bool recording_ = false;
  int vain_recordings_ = 0;  // that were replayed for the recorded call only, one after the other
  bool fresh_ = false;       // nothing but that call has been replayed
  std::string given_up_;     // why; empty: not
  std::string reason_;
  std::vector<Piece> pieces_;
  std::vector<HostWork> host_work_;
  std::vector<at::Tensor> inputs_;  // that were recorded with
  std::vector<Seen> seen_;
  std::uint64_t signature_ = 0;  // of what is done between pieces
  std::int64_t replays_ = 0;
};

}  // namespace tandem
