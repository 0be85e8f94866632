#pragma once

#include <concepts>
#include <cstdint>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <ranges>
#include <utility>

namespace tandem::data {

/// Gives one sample a call, nothing at the end.
template <class Sample>
using SampleStream = std::function<std::optional<Sample>()>;

/// Samples one after another, for data that cannot be asked for by index. Each epoch begins a new stream.
///
///     data::IterableDataset lines([](std::int64_t epoch) {
///       return [file = open_log(epoch)]() mutable -> std::optional<Line> { return file.next(); };
///     });
///     data::IterableDataset squares(std::vector<float>{1, 4, 9});
///
/// By default rank 0 reads it for all ranks. In shard mode rank 0's stream is read for all of them too, by whichever
/// rank needs a step first, and every rank keeps its part: a stream may be of a file or a connection that cannot be
/// copied. On several machines it is rank 0's, which is sent to the others.
template <class Sample>
class IterableDataset {
 public:
  using SampleType = Sample;  ///< what a stream gives

  /// `begin(epoch)` makes the stream of an epoch.
  explicit IterableDataset(std::function<SampleStream<Sample>(std::int64_t)> begin) : begin_(std::move(begin)) {}

  /// The elements of `range`, in every epoch. Copies of the dataset share the range.
  template <std::ranges::input_range Range>
  requires std::convertible_to<std::ranges::range_value_t<Range>, Sample>
  explicit IterableDataset(Range range) {
    begin_ = [shared = std::make_shared<Range>(std::move(range))](std::int64_t) -> SampleStream<Sample> {
      return [shared, at = std::ranges::begin(*shared)]() mutable -> std::optional<Sample> {
        if (at == std::ranges::end(*shared)) return std::nullopt;
        std::optional<Sample> sample(*at);
        ++at;
        return sample;
      };
    };
  }

  /// A new stream of epoch `epoch`.
  SampleStream<Sample> begin(std::int64_t epoch) const { return begin_(epoch); }

 private:
  std::function<SampleStream<Sample>(std::int64_t)> begin_;
};

/// Of a range: its elements are the samples.
template <std::ranges::input_range Range>
IterableDataset(Range) -> IterableDataset<std::ranges::range_value_t<Range>>;
/// Of a function that makes streams: what these give are the samples.
template <class Begin>
requires std::invocable<Begin&, std::int64_t> IterableDataset(Begin)
->IterableDataset<typename std::invoke_result_t<std::invoke_result_t<Begin&, std::int64_t>&>::value_type>;

}  // namespace tandem::data
