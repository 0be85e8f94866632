#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <c10/core/Device.h>

#include "tandem/comm/detail/objects.h"
#include "tandem/comm/reduction.h"
#include "tandem/data/batch.h"
#include "tandem/runtime/rank_values.h"

namespace tandem::comm {
class Communicator;
}

namespace tandem {

struct AcceleratorState;
struct RankContext;

/// One of a launch's ranks, for its thread: who it is, and what ranks do together. The part of an Accelerator that has
/// nothing to do with training.
///
/// Members marked collective must be called by all ranks, in the same order. They throw CollectiveError when the ranks'
/// calls differ. Every member that waits throws Cancelled when another rank has failed.
class Rank {
 public:
  Rank(const Rank&) = delete;
  Rank& operator=(const Rank&) = delete;

  // ---- who and where

  int rank() const { return rank_; }              ///< from 0
  int world_size() const { return world_size_; }  ///< how many ranks there are
  /// Parts of a global batch: in exact mode its logical shards, otherwise the world size.
  int logical_ranks() const;
  bool is_main() const { return rank_ == 0; }                ///< whether it is rank 0
  bool is_last() const { return rank_ == world_size_ - 1; }  ///< whether no rank has a higher number
  int local_rank() const;                                    ///< from 0, among those of this process
  bool is_local_main() const { return local_rank() == 0; }   ///< whether it is the first one of this process
  c10::Device device() const { return device_; }             ///< that this rank computes on
  const AcceleratorState& state() const { return *state_; }  ///< the launch's, shared by all ranks

  /// True once the launch is ending because a rank failed; for long computations of the body's own, and for datasets.
  /// Any thread.
  bool cancelled() const;

  /// Collectives that the members below do not have, such as reduce_scatter and all_to_all. Lives as long as the
  /// launch.
  comm::Communicator& communicator() const;

  // ---- collectives over tensors, numbers and any nesting of them (see data/batch.h)
  //
  // Structure and types must agree on all ranks, sizes as each member says. Where they do not, or where a rank's value
  // cannot be used (an undefined tensor, another device), all ranks throw the same CollectiveError, and a body that
  // catches it can go on. Parts of a struct that its batch_fields does not name stay each rank's own.

  /// Every tensor joined along dim 0 in rank order; a 0-dim tensor gives one of [world_size]. A number gives the
  /// std::vector of all ranks', and a std::vector or std::array of numbers is joined as a tensor of one dim: see
  /// Gathered. Ranks may differ in dim 0. Collective.
  template <class T>
  Gathered<T> gather(const T& value) {
    return gather_rows(value, kAllRows);
  }

  /// `gather` without the samples that the loader repeated to fill the last step: over an epoch, each sample once. A
  /// number counts as a sample of its rank, as a 0-dim tensor does. Collective.
  template <class T>
  Gathered<T> gather_for_metrics(const T& value) {
    return gather_rows(value, samples_to_keep());
  }

  /// Every rank's `object`, by rank, copied. Any copyable type, the same on all ranks. A tensor in it is copied as its
  /// own constructor does, which leaves both with one memory: `gather` and `broadcast` give each rank its own.
  /// Collective.
  template <class T>
  std::vector<T> gather_objects(const T& object) {
    return comm::detail::gather_objects(group(), rank(), object);
  }

  /// Every tensor and number summed up over the ranks, for all ranks; `value` stays as it is. A bool counts as 0 or 1;
  /// a bool tensor's sum is whether any is set. Tensors of integers wrap around, as they do in torch.distributed and in
  /// LibTorch's own sums of two: widen those of bytes first. Collective. Throws CollectiveError where a number does not
  /// fit: a plain integer into std::int64_t, one within a nesting into its own type.
  ///
  ///     const double loss_sum = accelerator.reduce(loss.item<double>());
  ///     const std::int64_t correct = accelerator.reduce(correct_here);
  template <class T>
  Reduced<T> reduce(const T& value) {
    return reduce_value(value, comm::ReduceOp::sum);
  }

  /// Every tensor and number reduced over the ranks, for all ranks; `value` stays as it is. Floating-point numbers are
  /// reduced as double, integers exactly, and the mean of a plain integer is a double: see ReducedInteger. Mean needs
  /// floating-point or complex tensors, and floating-point numbers within a nesting; max and min need real ones
  /// (CollectiveError otherwise, for any number of ranks). Throws as reduce(value). Collective.
  ///
  ///     const double loss_mean = accelerator.reduce(loss.item<double>(), tandem::comm::ReduceOp::mean);
  template <class T>
  auto reduce(const T& value, comm::ReduceOp op) {
    if constexpr (std::is_integral_v<T>)
      return op == comm::ReduceOp::mean ? ReducedInteger(reduce_value(static_cast<double>(value), op))
                                        : ReducedInteger(reduce_value(value, op));
    else
      return reduce_value(value, op);
  }

  /// Overwrites every tensor and number in `value` with rank `root`'s. Sizes agree on all ranks. Collective.
  template <class T>
  void broadcast(T& value, int root = 0) {
    detail::check_exchangeable<T>();
    detail::ValueParts parts = detail::take_to_pieces(value);
    broadcast_parts(parts, root);
    detail::PlaceParts place(parts);
    detail::walk(value, place);
  }

  /// Rank `root`'s object, copied. Any copyable type, the same on all ranks; of tensors in it see gather_objects.
  /// Throws CollectiveError on all ranks when `root` is no rank, or not the same on all. Collective.
  template <class T>
  T broadcast_object(const T& object, int root = 0) {
    return comm::detail::broadcast_object(group(), rank(), object, root);
  }

  /// Every tensor padded with `value` along `dim` to the longest rank's size, at the end or the front, and every
  /// std::vector of numbers, as a tensor of one dim. What does not have that dim stays as it is. The number of dims
  /// agrees on all ranks. Throws CollectiveError when `value` cannot be one of integers. Collective.
  template <class T>
  T pad_across_ranks(const T& batch, std::int64_t dim = 0, double value = 0.0, bool pad_first = false) {
    detail::check_exchangeable<T>();
    T padded = batch;
    detail::ValueParts parts = detail::take_to_pieces(padded);
    pad_parts(parts, dim, value, pad_first);
    detail::PlaceParts place(parts);
    detail::walk(padded, place);
    return padded;
  }

  // ---- control

  /// Returns when all ranks are here. Collective.
  void wait_for_everyone();

  /// Sets this rank's trigger, which any rank's next check_trigger sees.
  void set_trigger();

  /// True on all ranks when any has set its trigger since the last check; resets it. Collective.
  bool check_trigger();

  /// Runs `function` on rank 0 and then, at the same time, on the other ranks. Collective. An exception on rank 0 ends
  /// all ranks, also where its body catches it.
  template <class Function>
  auto main_first(Function&& function) {
    if constexpr (std::is_void_v<decltype(function())>) {
      run_main_first([&] { function(); });
    } else {
      std::optional<std::decay_t<decltype(function())>> result;
      run_main_first([&] { result.emplace(function()); });
      return *std::move(result);
    }
  }

  /// As main_first with the first rank of each process in the place of rank 0: for what each machine needs once, such
  /// as a download. The ranks wait for those of their own process. Collective.
  template <class Function>
  auto local_main_first(Function&& function) {
    if constexpr (std::is_void_v<decltype(function())>) {
      run_local_main_first([&] { function(); });
    } else {
      std::optional<std::decay_t<decltype(function())>> result;
      run_local_main_first([&] { result.emplace(function()); });
      return *std::move(result);
    }
  }

  /// Runs `function` on the first rank of each process only, and waits for nobody.
  template <class Function>
  void on_local_main(Function&& function) const {
    if (is_local_main()) function();
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

  /// This rank's share of the rows (dim 0) of a tensor, a view unless rows are repeated. Throws DataError for a tensor
  /// without rows. Not collective.
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
  explicit Rank(RankContext& context);
  ~Rank() = default;

  RankContext& context_;  ///< the rank's

 private:
  struct Share {
    std::size_t begin, end, repeat;
  };

  static constexpr std::int64_t kAllRows = -1;

  // The first `keep` rows.
  template <class T>
  Gathered<T> gather_rows(const T& value, std::int64_t keep) {
    detail::check_exchangeable<T>();
    static_assert(!detail::cannot_hold_gathered<T>(),
                  "gather of a struct with a plain number: the struct has no place for the numbers of all ranks. Make "
                  "it a tensor or a std::vector, leave it out of batch_fields, or use gather_objects");
    T copy = value;
    detail::ValueParts parts = detail::take_to_pieces(copy);
    gather_parts(parts, keep);
    detail::PlaceParts place(parts);
    return detail::gathered(copy, place);
  }

  template <class T>
  Reduced<T> reduce_value(const T& value, comm::ReduceOp op) {
    detail::check_exchangeable<T>();
    T copy = value;
    detail::ValueParts parts = detail::take_to_pieces(copy);
    reduce_parts(parts, op);
    if constexpr (std::is_arithmetic_v<T>) {
      return detail::from_number<Reduced<T>>(parts.numbers[0].values[0]);
    } else {
      detail::PlaceParts place(parts);
      detail::walk(copy, place);
      return copy;
    }
  }

  // Each has the results in the places of the parts.
  void gather_parts(detail::ValueParts& parts, std::int64_t keep);
  void reduce_parts(detail::ValueParts& parts, comm::ReduceOp op);
  void broadcast_parts(detail::ValueParts& parts, int root);
  void pad_parts(detail::ValueParts& parts, std::int64_t dim, double value, bool pad_first);
  std::int64_t samples_to_keep() const;

  comm::RankGroup& group() const;
  void run_main_first(const std::function<void()>& function);
  void run_local_main_first(const std::function<void()>& function);
  Share share_of(std::size_t size, bool padding) const;
  static void write_out(const std::string& text);

  int rank_, world_size_;
  c10::Device device_;
  const AcceleratorState* state_;
};

}  // namespace tandem
