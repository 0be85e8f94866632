#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tandem/core/error.h"
#include "tandem/core/work_scope.h"
#include "tandem/data/dataset_access.h"
#include "tandem/data/epoch_plan.h"
#include "tandem/data/epoch_steps.h"
#include "tandem/data/iterable.h"
#include "tandem/data/iterable_dataset_shard.h"
#include "tandem/rng/generators.h"

namespace tandem::data {

/// A StreamReader of any samples.
class AnyStreamReader {
 public:
  virtual ~AnyStreamReader() = default;

  /// Who reads next gets an error, as what the stream is made of may be gone.
  virtual void close() = 0;
};

/// Reads a stream once for all ranks that take parts of it: streams may share what they read from (a file, a
/// connection), also those of copies of a dataset, and then two readers would each get some of the samples. Whoever
/// needs a step first reads it, for all; what the others have not taken yet is kept. Readers may call at the same time,
/// each from one thread at a time.
template <class Sample>
class StreamReader final : public AnyStreamReader {
 public:
  using OpenStream = std::function<SampleStream<Sample>(std::int64_t epoch)>;  ///< the samples of an epoch

  /// What a reader gets of a step.
  struct Part {
    StepInfo info;                             ///< which step it is
    std::vector<std::vector<Sample>> samples;  ///< of each rank where `plan` dispatches, otherwise of the reader
    std::vector<std::int64_t> positions;       ///< in the stream: of the first of each of these
  };

  /// For the ranks of `plan`, or for rank 0 where it dispatches. `token`, of the launch, outlives it; null where nobody
  /// closes it. Throws ConfigError when the options do not go together.
  StreamReader(EpochPlanOptions plan, std::uint64_t seed, OpenStream open, const CancelToken* token = nullptr)
      : plan_(plan),
        seed_(seed),
        open_(std::move(open)),
        token_(token),
        epochs_(static_cast<std::size_t>(plan.dispatch ? 1 : plan.ranks)) {
    EpochPlan{plan_};
  }

  /// Begins an epoch of `reader`. What goes wrong in opening the stream, or in reading steps that are skipped, is for
  /// `next` to throw. Throws DataError when another reader began it with another epoch or step.
  void start(int reader, const EpochStart& start) {
    if (const auto before = running(reader)) leave(reader, before->start.number);
    bool joined = join(reader, start);
    if (joined) return;
    if (closed_) fail(kClosed);
    const auto reading = wait_for_turn([&] { return joined = join(reader, start); });
    if (joined || join(reader, start)) return;  // another has opened it meanwhile
    auto epoch = open(start);
    {
      const std::lock_guard lock(mutex_);
      begun_.emplace(start.number, std::move(epoch));
    }
    join(reader, start);
  }

  /// The next step of the epoch that `reader` has begun; nothing at its end. Throws what reading throws, as SampleError
  /// and for each reader, and CollectiveError when the stream was begun anew before it was read as far.
  std::optional<Part> next(int reader) {
    const std::shared_ptr<Epoch> epoch = running(reader);
    std::optional<Part> part = take(*epoch, reader);
    if (part) return part;
    std::string problem;
    {
      const auto reading = wait_for_turn([&] { return (part = take(*epoch, reader)).has_value(); });
      if (!part) part = take(*epoch, reader);
      if (part) return part;  // another has read it meanwhile
      problem = advance(*epoch);
    }
    if (!problem.empty()) fail(problem);
    return take(*epoch, reader);
  }

  /// `reader` takes no more of its `number`-th epoch.
  void leave(int reader, std::uint64_t number) {
    const std::lock_guard lock(mutex_);
    if (!epoch_of(reader) || epoch_of(reader)->start.number != number) return;
    const std::shared_ptr<Epoch> epoch = std::exchange(epoch_of(reader), nullptr);
    epoch->left[static_cast<std::size_t>(reader)] = true;
    epoch->kept[static_cast<std::size_t>(reader)].clear();
  }

  /// EpochPlan::remainder of the epoch that `reader` is in; -1 until its end has been read.
  std::int64_t remainder(int reader) const {
    const std::lock_guard lock(mutex_);
    const auto& epoch = epochs_[static_cast<std::size_t>(reader)];
    return epoch ? epoch->remainder : -1;
  }

  void close() override {
    closed_ = true;
    const std::lock_guard reading(reading_);  // whoever reads is told that the work is unwanted
  }

 private:
  struct Epoch {
    EpochStart start;
    // Guarded by `reading_`.
    IterableDatasetShard<Sample> shard;
    ReadContext context;
    bool ended = false, given_up = false, overtaken = false;  // by a later epoch
    std::exception_ptr failure{};
    // Guarded by `mutex_`.
    int left_to_begin;                   // readers that have not begun it yet
    std::vector<std::deque<Part>> kept;  // by reader: read for it, and not taken yet
    std::vector<bool> left;              // by reader
    std::int64_t remainder = -1;
  };

  // False when nobody has opened it yet. Waits for no one who reads.
  bool join(int reader, const EpochStart& start) {
    const std::lock_guard lock(mutex_);
    const auto found = begun_.find(start.number);
    if (found == begun_.end()) return false;
    const std::shared_ptr<Epoch> epoch = found->second;
    epoch->left_to_begin -= 1;
    if (epoch->left_to_begin == 0) begun_.erase(found);
    if (epoch->start.epoch != start.epoch || epoch->start.first_step != start.first_step)
      throw DataError("ranks begin an epoch of a data loader differently: epoch " + std::to_string(start.epoch) +
                      " with step " + std::to_string(start.first_step) + ", and epoch " +
                      std::to_string(epoch->start.epoch) + " with step " + std::to_string(epoch->start.first_step) +
                      "; set, skip and load alike on all ranks");
    epoch_of(reader) = epoch;
    return true;
  }

  // To read, or unlocked when `done` says that there is no need to. Whoever reads may be waiting for long, for work
  // that is still wanted by others.
  template <class Done>
  std::unique_lock<std::timed_mutex> wait_for_turn(Done done) {
    std::unique_lock<std::timed_mutex> turn(reading_, std::defer_lock);
    while (!turn.try_lock_for(std::chrono::milliseconds(1)) && !done())
      if (work_is_unwanted() || (token_ && token_->cancelled())) throw Cancelled("the epoch of a data loader was left");
    return turn;
  }

  std::shared_ptr<Epoch>& epoch_of(int reader) { return epochs_[static_cast<std::size_t>(reader)]; }

  std::shared_ptr<Epoch> running(int reader) {
    const std::lock_guard lock(mutex_);
    return epoch_of(reader);
  }

  std::optional<Part> take(Epoch& epoch, int reader) {
    const std::lock_guard lock(mutex_);
    std::deque<Part>& kept = epoch.kept[static_cast<std::size_t>(reader)];
    if (kept.empty()) return std::nullopt;
    std::optional<Part> part(std::move(kept.front()));
    kept.pop_front();
    return part;
  }

  std::shared_ptr<Epoch> open(const EpochStart& start) {
    overtake();
    const std::size_t readers = epochs_.size();
    auto epoch = std::make_shared<Epoch>(Epoch{.start = start,
                                               .shard = IterableDatasetShard<Sample>(plan_),
                                               .context = {.seed = seed_, .epoch = start.epoch, .step = 0, .rank = 0},
                                               .left_to_begin = static_cast<int>(readers),
                                               .kept = std::vector<std::deque<Part>>(readers),
                                               .left = std::vector<bool>(readers, false)});
    read(*epoch, [&] {
      epoch->shard.start(keyed(opened(start.epoch), start.epoch));
      for (std::int64_t step = 0; step < start.first_step && epoch->shard.advance(); ++step) epoch->context.step += 1;
    });
    return epoch;
  }

  // The stream of a new epoch may be made of what those before read from.
  void overtake() {
    const std::lock_guard lock(mutex_);
    for (const auto& [number, epoch] : begun_) epoch->overtaken = true;
    for (const auto& epoch : epochs_)
      if (epoch) epoch->overtaken = true;
  }

  SampleStream<Sample> opened(std::int64_t epoch) const {
    const rng::KeyedGenerator generator(seed_, epoch, kBeginning);
    return open_(epoch);
  }

  // A sample's generator depends on its place in the stream only.
  SampleStream<Sample> keyed(SampleStream<Sample> stream, std::int64_t epoch) const {
    return [stream = std::move(stream), seed = seed_, epoch, position = std::int64_t{0}]() mutable {
      const rng::KeyedGenerator generator(seed, epoch, position);
      auto sample = stream();
      position += 1;
      return sample;
    };
  }

  // Returns what keeps it from that, if something does that is no failure of the stream.
  std::string advance(Epoch& epoch) {
    if (epoch.given_up) return kGivenUp;
    if (epoch.failure) std::rethrow_exception(epoch.failure);
    if (epoch.ended) return {};
    if (closed_) return kClosed;
    if (epoch.overtaken) return kOvertaken;
    bool more = false;
    read(epoch, [&] { more = epoch.shard.advance(); });
    if (epoch.given_up) return kGivenUp;
    if (epoch.failure) std::rethrow_exception(epoch.failure);
    epoch.context.step += 1;
    epoch.ended = !more || epoch.shard.info(0).last_of_all;
    const std::lock_guard lock(mutex_);
    epoch.remainder = epoch.shard.remainder();
    if (!more) return {};
    for (std::size_t reader = 0; reader < epochs_.size(); ++reader)
      if (!epoch.left[reader]) epoch.kept[reader].push_back(part(epoch.shard, static_cast<int>(reader)));
    return {};
  }

  Part part(const IterableDatasetShard<Sample>& shard, int reader) const {
    Part part{shard.info(reader), {}, {}};
    const EpochPlan plan(plan_);
    const std::int64_t begin = part.info.step * plan.global_batch_size(), each = plan.global_batch_size() / plan_.ranks;
    for (int rank = plan_.dispatch ? 0 : reader; rank <= (plan_.dispatch ? plan_.ranks - 1 : reader); ++rank) {
      part.samples.push_back(shard.samples(rank));
      part.positions.push_back(begin + rank * each);
    }
    return part;
  }

  // What goes wrong is for all readers.
  template <class Function>
  void read(Epoch& epoch, Function function) const {
    std::optional<WorkScope> scope;
    if (token_) scope.emplace(*token_, &closed_);
    try {
      try {
        function();
      } catch (...) {
        detail::throw_sample_error("sample " + std::to_string(epoch.shard.samples_read()) + " of the stream",
                                   epoch.context);
      }
    } catch (...) {
      epoch.failure = std::current_exception();
    }
    // The stream may have given up then, which looks like its end.
    epoch.given_up = work_is_unwanted();
  }

  // The other rank may be failing, which the token is about to say, and that is what counts. Called without a lock: the
  // other one's end may wait for it.
  [[noreturn]] void fail(const std::string& problem) const {
    for (int waited = 0; token_ && waited < 1000 && !work_is_unwanted(); ++waited) {
      token_->check();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    throw CollectiveError(problem + "; all ranks must leave an epoch at the same step");
  }

  static constexpr const char* kGivenUp = "a rank left an epoch of a data loader over a stream that it read for all";
  static constexpr const char* kClosed =
      "rank 0 gave up a data loader over a stream that another rank still reads from";
  static constexpr const char* kOvertaken =
      "a rank has begun another epoch of a data loader over a stream before the others had read as much of the one "
      "before";

  const EpochPlanOptions plan_;
  const std::uint64_t seed_;
  const OpenStream open_;
  const CancelToken* const token_;
  std::atomic<bool> closed_{false};
  std::timed_mutex reading_;                               // held while the stream is read; the outer one of the two
  mutable std::mutex mutex_;                               // never held for long
  std::map<std::uint64_t, std::shared_ptr<Epoch>> begun_;  // that some reader has not begun yet; guarded by `mutex_`
  std::vector<std::shared_ptr<Epoch>> epochs_;             // by reader: which it is in; guarded by `mutex_`
};

}  // namespace tandem::data
