#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "nn/model_reducer.h"

namespace tandem::nn {

/// The reducers of one rank's models, which share the passes. It makes them, and leads them through a pass. Buckets
/// start in one order over all models, the same on all ranks: the models take turns, the one first whose gradients were
/// complete first on rank 0 in the last pass.
class ReducerGroup {
 public:
  ReducerGroup();
  ~ReducerGroup();
  ReducerGroup(const ReducerGroup&) = delete;
  ReducerGroup& operator=(const ReducerGroup&) = delete;

  /// The reducer of `module`, if it has one.
  std::shared_ptr<ModelReducer> find(const torch::nn::Module& module) const;
  /// That of the model that has `parameter`; null for none.
  ModelReducer* find(const at::Tensor& parameter) const;

  /// Adds a model: see ModelReducer. All ranks add theirs in the same order. Collective.
  std::shared_ptr<ModelReducer> add(std::shared_ptr<torch::nn::Module> module, comm::Communicator& communicator,
                                    comm::RankGroup& group, const GradientReducerOptions& options = {});

  std::size_t size() const { return all_.size(); }  ///< how many models there are
  /// Keeps the first `size`. The others leave the launch, also where the program keeps them.
  void shorten(std::size_t size);

  /// In the order in which they were added.
  auto begin() const { return all_.begin(); }
  auto end() const { return all_.end(); }  ///< behind the last

  /// To be called before every backward pass. Throws ConfigError when a model has other parameters than it had when it
  /// was prepared.
  void before_pass();

  /// Whether passes from now on are followed by ModelReducer::scale_window: then what gradients held before them is
  /// kept apart, which takes as much memory as the gradients that there are.
  void keep_apart(bool keeps) { pass_.keeps_apart = keeps; }

  /// Calls `arrived` for each parameter whose gradient a pass has added to, which may take it.
  void tell_arrivals(std::function<void(const at::Tensor& parameter)> arrived) { pass_.arrived = std::move(arrived); }

  /// Begins a pass whose gradients, with those accumulated since the last reduction, are reduced. Throws
  /// CollectiveError when the last one was left in the middle. Collective, with `finish_pass`.
  void begin_pass();

  /// Ends it: all gradients are the mean over the ranks, and buffers rank `main`'s.
  void finish_pass(int main = 0);

 private:
  RankPass pass_;
  std::vector<std::shared_ptr<ModelReducer>> all_;
  std::vector<ModelReducer*> turns_;
};

}  // namespace tandem::nn
