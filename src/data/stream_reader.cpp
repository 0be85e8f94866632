#include "data/stream_reader.h"

#include <chrono>
#include <thread>
#include <utility>

#include "core/work_scope.h"
#include "tandem/core/error.h"

namespace tandem::data {
namespace {

constexpr const char* kGivenUp = "a rank left an epoch of a data loader over a stream that it read for all";
constexpr const char* kClosed = "rank 0 gave up a data loader over a stream that another rank still reads from";
constexpr const char* kOvertaken =
    "a rank has begun another epoch of a data loader over a stream before the others had read as much of the one "
    "before";

}  // namespace

StreamReader::StreamReader(EpochPlanOptions plan, bool for_all, std::uint64_t seed, detail::MakeWindow make_window,
                           const CancelToken* token)
    : plan_(plan),
      for_all_(for_all),
      seed_(seed),
      make_window_(std::move(make_window)),
      token_(token),
      epochs_(static_cast<std::size_t>(for_all ? 1 : plan.ranks)) {
  EpochPlan{plan_};
}

void StreamReader::start(int reader, const EpochStart& start) {
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

std::optional<StreamReader::Part> StreamReader::next(int reader) {
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

void StreamReader::leave(int reader, std::uint64_t number) {
  const std::lock_guard lock(mutex_);
  if (!epoch_of(reader) || epoch_of(reader)->start.number != number) return;
  const std::shared_ptr<Epoch> epoch = std::exchange(epoch_of(reader), nullptr);
  epoch->left[static_cast<std::size_t>(reader)] = true;
  epoch->kept[static_cast<std::size_t>(reader)].clear();
}

std::int64_t StreamReader::remainder(int reader) const {
  const std::lock_guard lock(mutex_);
  const auto& epoch = epochs_[static_cast<std::size_t>(reader)];
  return epoch ? epoch->remainder : -1;
}

void StreamReader::close() {
  closed_ = true;
  const std::lock_guard reading(reading_);  // whoever reads is told that the work is unwanted
}

// False when nobody has opened it yet. Waits for no one who reads.
bool StreamReader::join(int reader, const EpochStart& start) {
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
std::unique_lock<std::timed_mutex> StreamReader::wait_for_turn(const std::function<bool()>& done) {
  std::unique_lock<std::timed_mutex> turn(reading_, std::defer_lock);
  while (!turn.try_lock_for(std::chrono::milliseconds(1)) && !done())
    if (work_is_unwanted() || (token_ && token_->cancelled())) throw Cancelled("the epoch of a data loader was left");
  return turn;
}

std::shared_ptr<StreamReader::Epoch> StreamReader::running(int reader) {
  const std::lock_guard lock(mutex_);
  return epoch_of(reader);
}

std::optional<StreamReader::Part> StreamReader::take(Epoch& epoch, int reader) {
  const std::lock_guard lock(mutex_);
  std::deque<Part>& kept = epoch.kept[static_cast<std::size_t>(reader)];
  if (kept.empty()) return std::nullopt;
  std::optional<Part> part(std::move(kept.front()));
  kept.pop_front();
  return part;
}

std::shared_ptr<StreamReader::Epoch> StreamReader::open(const EpochStart& start) {
  overtake();
  const std::size_t readers = epochs_.size();
  auto epoch = std::make_shared<Epoch>(Epoch{.start = start,
                                             .shard = IterableDatasetShard(plan_, make_window_()),
                                             .context = {.seed = seed_, .epoch = start.epoch, .step = 0, .rank = 0},
                                             .left_to_begin = static_cast<int>(readers),
                                             .kept = std::vector<std::deque<Part>>(readers),
                                             .left = std::vector<bool>(readers, false)});
  read(*epoch, [&] {
    epoch->shard.start(seed_, start.epoch);
    for (std::int64_t step = 0; step < start.first_step && epoch->shard.advance(); ++step) epoch->context.step += 1;
  });
  return epoch;
}

// The stream of a new epoch may be made of what those before read from.
void StreamReader::overtake() {
  const std::lock_guard lock(mutex_);
  for (const auto& [number, epoch] : begun_) epoch->overtaken = true;
  for (const auto& epoch : epochs_)
    if (epoch) epoch->overtaken = true;
}

// Returns what keeps it from that, if something does that is no failure of the stream.
std::string StreamReader::advance(Epoch& epoch) {
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

StreamReader::Part StreamReader::part(const IterableDatasetShard& shard, int reader) const {
  Part part{shard.info(reader), {}, {}, shard.rows()};
  const EpochPlan plan(plan_);
  const std::int64_t begin = part.info.step * plan.global_batch_size(), each = plan.global_batch_size() / plan_.ranks;
  for (int rank = for_all_ ? 0 : reader; rank <= (for_all_ ? plan_.ranks - 1 : reader); ++rank) {
    part.samples.push_back(shard.samples(rank));
    part.positions.push_back(begin + rank * each);
  }
  return part;
}

// What goes wrong is for all readers.
void StreamReader::read(Epoch& epoch, const std::function<void()>& function) const {
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
void StreamReader::fail(const std::string& problem) const {
  for (int waited = 0; token_ && waited < 1000 && !work_is_unwanted(); ++waited) {
    token_->check();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  throw CollectiveError(problem + "; all ranks must leave an epoch at the same step");
}

}  // namespace tandem::data
