#pragma once

#include <cstddef>
#include <cstdint>
#include <sstream>
#include <string>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

#include "tandem/comm/call_record.h"
#include "tandem/comm/communicator.h"
#include "tandem/data/batch.h"
#include "tandem/data/epoch_steps.h"
#include "tandem/runtime/state.h"

namespace tandem {

/// One of a launch's ranks, for its thread: who it is, and what ranks do together. The part of an Accelerator that has
/// nothing to do with training.
///
/// Members marked collective must be called by all ranks, in the same order. They throw CollectiveError when the ranks'
/// calls differ. Every member that waits throws Cancelled when another rank has failed.
class RankHandle {
 public:
  RankHandle(const RankHandle&) = delete;
  RankHandle& operator=(const RankHandle&) = delete;

  // ---- who and where

  int rank() const { return context_.rank; }                         ///< from 0
  int world_size() const { return context_.state->world_size(); }    ///< how many ranks there are
  bool is_main() const { return rank() == 0; }                       ///< whether it is rank 0
  bool is_last() const { return rank() == world_size() - 1; }        ///< whether no rank has a higher number
  c10::Device device() const { return context_.device(); }           ///< that this rank computes on
  const AcceleratorState& state() const { return *context_.state; }  ///< the launch's, shared by all ranks

  /// True once the launch is ending because a rank failed; for long computations of the body's own, and for datasets.
  /// Any thread.
  bool cancelled() const { return context_.group->token().cancelled(); }

  // ---- collectives over any nesting of tensors (see data/batch.h)

  /// Every tensor joined along dim 0 in rank order; a 0-dim tensor gives one of [world_size]. Ranks may differ in
  /// dim 0. Collective.
  template <class T>
  T gather(const T& value) {
    return data::map_tensors(value, [this](const at::Tensor& tensor) { return gather_tensor(tensor); });
  }

  /// `gather` without the samples that the loader repeated to fill the last step: over an epoch, each sample once.
  /// Collective.
  template <class T>
  T gather_for_metrics(const T& value) {
    T gathered = gather(value);
    const data::StepInfo* loader = context_.gradients.loaders.current();
    const std::int64_t keep = loader ? loader->samples_to_keep : 0;
    return keep > 0 ? data::slice(std::move(gathered), 0, keep) : gathered;
  }

  /// Every rank's `object`, by rank, copied. Any copyable type, the same on all ranks. Collective.
  template <class T>
  std::vector<T> gather_objects(const T& object) {
    const auto record = comm::describe_object_call(comm::Operation::gather_objects, typeid(T));
    const comm::RankGroup::Call call(*context_.group, rank(), record, &object);
    std::vector<T> objects;
    for (int peer = 0; peer < world_size(); ++peer) objects.push_back(call.template payload<T>(peer));
    return objects;
  }

  /// Every tensor reduced over the ranks, for all ranks; `value` stays as it is. Mean needs floating-point or complex
  /// tensors, max and min real ones (CollectiveError otherwise, for any number of ranks). Collective.
  template <class T>
  T reduce(const T& value, comm::ReduceOp op = comm::ReduceOp::sum) {
    T result = data::map_tensors(value, [](const at::Tensor& tensor) { return clone_for_reduction(tensor); });
    std::vector<at::Tensor> tensors;
    data::for_each_tensor(result, [&](at::Tensor& tensor) { tensors.push_back(tensor); });
    context_.communicator->all_reduce(tensors, op);
    return result;
  }

  /// Overwrites every tensor in `value` with rank `root`'s. Collective.
  template <class T>
  void broadcast(T& value, int root = 0) {
    std::vector<at::Tensor> tensors;
    data::for_each_tensor(value, [&](at::Tensor& tensor) { tensors.push_back(tensor); });
    context_.communicator->broadcast(tensors, root);
  }

  /// Rank `root`'s object. Any copyable type, the same on all ranks. Collective.
  template <class T>
  T broadcast_object(const T& object, int root = 0) {
    check_root(root, "broadcast_object");
    auto record = comm::describe_object_call(comm::Operation::broadcast_object, typeid(T));
    record.root = root;
    const comm::RankGroup::Call call(*context_.group, rank(), record, &object);
    return call.template payload<T>(root);
  }

  /// Every tensor padded with `value` along `dim` to the longest rank's size, at the end or the front. A tensor
  /// without that dim stays as it is. Collective.
  template <class T>
  T pad_across_ranks(const T& batch, std::int64_t dim = 0, double value = 0.0, bool pad_first = false) {
    return data::map_tensors(batch,
                             [&](const at::Tensor& tensor) { return pad_tensor(tensor, dim, value, pad_first); });
  }

  // ---- control

  /// Returns when all ranks are here. Collective.
  void wait_for_everyone() { context_.communicator->barrier(); }

  /// Sets this rank's trigger, which any rank's next check_trigger sees.
  void set_trigger() { trigger_ = true; }

  /// True on all ranks when any has set its trigger since the last check; resets it. Collective.
  bool check_trigger();

  /// Runs `function` on rank 0 and then, at the same time, on the other ranks. Collective. An exception on rank 0 ends
  /// all.
  template <class Function>
  auto main_first(Function&& function) {
    const comm::CallRecord record{.operation = comm::Operation::main_first};
    if (!is_main()) {
      context_.group->meet(rank(), record);
      return function();
    }
    if constexpr (std::is_void_v<decltype(function())>) {
      function();
      context_.group->meet(rank(), record);
    } else {
      auto result = function();
      context_.group->meet(rank(), record);
      return result;
    }
  }

  /// Runs `function` on rank 0 only, and waits for nobody.
  template <class Function>
  void on_main(Function&& function) const {
    if (is_main()) function();
  }

  /// This rank's share of `items`: consecutive, the first `size mod world_size` ranks get one more. With `padding` the
  /// last item is repeated so that all ranks get as many. An empty input gives empty shares. Not collective.
  template <class T>
  std::vector<T> split_between_ranks(const std::vector<T>& items, bool padding = false) const {
    const auto [begin, end, repeat] = share_of(items.size(), padding);
    std::vector<T> share(items.begin() + static_cast<std::ptrdiff_t>(begin),
                         items.begin() + static_cast<std::ptrdiff_t>(end));
    for (std::size_t i = 0; i < repeat; ++i) share.push_back(items.back());
    return share;
  }

  /// The same for the rows (dim 0) of a tensor.
  at::Tensor split_between_ranks(const at::Tensor& rows, bool padding = false) const;

  /// Writes the values and a newline to standard output, on rank 0 only.
  template <class... Values>
  void print(const Values&... values) const {
    if (!is_main()) return;
    std::ostringstream line;
    (line << ... << values) << '\n';
    write_out(line.str());
  }

 protected:
  /// `context` outlives it.
  explicit RankHandle(RankContext& context) : context_(context) {}
  ~RankHandle() = default;

  RankContext& context_;  ///< the rank's
  bool trigger_ = false;  ///< set_trigger(); also set back when a batch size is tried anew

 private:
  struct Share {
    std::size_t begin, end, repeat;
  };

  at::Tensor gather_tensor(const at::Tensor& tensor);
  at::Tensor pad_tensor(const at::Tensor& tensor, std::int64_t dim, double value, bool pad_first);
  Share share_of(std::size_t size, bool padding) const;
  void check_root(int root, const char* operation) const;
  static at::Tensor clone_for_reduction(const at::Tensor& tensor);
  static void write_out(const std::string& text);
};

}  // namespace tandem
