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

  /// What is to be done with a step of these arguments. Collective.
  Turn next(const std::vector<at::Tensor>& inputs);

  /// Calls `step` in the form in which it can be recorded.
  void rehearse(const std::function<void()>& step);

  /// Records what `step` does, which is not done then; true if that worked on all ranks. Otherwise everything is as
  /// before. Collective.
  bool record(const std::vector<at::Tensor>& inputs, const std::function<void()>& step);

  /// Does what was recorded, with the values of `inputs`. Collective.
  void replay(const std::vector<at::Tensor>& inputs);

  /// Forgets what was recorded; the next call records anew.
  void forget();

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
  static constexpr int kRehearsals = 3;  // the first makes states and handles, the second allocates as all later ones

  struct Piece {
    std::unique_ptr<Graph> graph;
    std::function<void()> then;  // empty: nothing
  };

  Turn wanted(const std::vector<at::Tensor>& inputs);
  std::uint64_t meet(std::uint64_t mine, bool& alike) const;
  std::optional<std::string> change_of(const std::vector<at::Tensor>& inputs) const;
  void begin_piece();
  void record_pieces(const std::function<void()>& step);
  void give_up(const std::string& reason);

  RankContext& context_;
  const std::function<std::vector<at::Tensor>()> parameters_;
  const std::function<std::optional<std::string>()> obstacle_;
  int rehearsals_ = 0;
  bool recording_ = false;
  bool given_up_ = false;
  std::string reason_;
  std::vector<Piece> pieces_;
  std::vector<HostWork> host_work_;
  std::vector<at::Tensor> inputs_;  // that were recorded with
  std::uint64_t signature_ = 0;     // of what is done between pieces
  std::int64_t replays_ = 0;
};

}  // namespace tandem
