#include "comm/nccl/team.h"

#include <algorithm>
#include <cstring>
#include <future>
#include <thread>
#include <utility>

#include "core/spin_budget.h"
#include "tandem/core/error.h"

namespace tandem::comm::nccl {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kNever = Clock::time_point::max();

// Looks, at first closely and then now and then, until `ready`; false when `limit` has passed.
template <class Ready>
bool look_until(Ready ready, Clock::time_point limit) {
  constexpr int kLooks = 1000;
  for (int looks = 0; !ready(); ++looks) {
    if (looks < kLooks) {
      pause_core();
      continue;
    }
    if (Clock::now() > limit) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  return true;
}

// What usually causes an error, by NCCL's number for it.
const char* usual_cause(Result result) {
  switch (static_cast<int>(result)) {
    case 1: return "usually an earlier failure on the device, or its memory is full";
    case 2: return "usually the system: limits of shared memory, of locked memory or of open files, or the network";
    case 3: return "a fault of NCCL, or of the driver";
    case 4: return "a fault of Tandem's";
    case 5: return "usually several ranks on one device, which NCCL refuses, or ranks whose calls differ";
    case 6: return "usually another rank has failed";
    default: return "NCCL_DEBUG=INFO makes NCCL say more";
  }
}

std::string seconds_of(std::chrono::milliseconds time) {
  const std::string text = std::to_string(std::chrono::duration<double>(time).count());
  return text.substr(0, text.find('.') + 2) + " s";
}

// A thread that NCCL gave back too late: what it belonged to has ended without it.
[[noreturn]] void sleep_for_ever() {
  for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
}

}  // namespace

Team::Team(std::shared_ptr<Api> api, RankGroup& group, std::vector<std::string> devices, Limits limits)
    : api_(std::move(api)),
      group_(group),
      first_rank_(group.place().first_rank),
      devices_(std::move(devices)),
      limits_(limits),
      ranks_(devices_.size()) {}

Team::Rank& Team::own(int rank) { return ranks_[static_cast<std::size_t>(rank - first_rank_)]; }

const std::string& Team::device_of(int rank) const { return devices_[static_cast<std::size_t>(rank - first_rank_)]; }

void Team::init(int rank) {
  UniqueId id{};
  if (rank == 0) require(rank, "ncclGetUniqueId", pass_gate(rank, [&] { return api_->get_unique_id(id); }));
  const CallRecord record{.operation = "connect"};
  const std::string bytes(reinterpret_cast<const char*>(&id), sizeof id);
  const std::string of_main = group_.gather_bytes(rank, record, rank == 0 ? bytes : "")[0];
  std::memcpy(&id, of_main.data(), std::min(of_main.size(), sizeof id));
  const RankGroup::WaitScope scope(group_, rank, "for NCCL to connect the ranks");
  const Result begun = pass_gate(rank, [&] {
    Comm comm = nullptr;
    const Result result = api_->init_rank(comm, group_.world_size(), id, rank);
    own(rank).comm = comm;
    return result;
  });
  const Result ended = await(rank, begun, Clock::now() + limits_.init);
  if (ended == Result::in_progress)
    throw CollectiveError("NCCL has not connected rank " + std::to_string(rank) + " (" + device_of(rank) + ") within " +
                          seconds_of(limits_.init));
  require(rank, "ncclCommInitRankConfig", ended);
  group_.meet(rank, record);
}

void Team::issue(int rank, const char* name, const std::function<Result(Api&, Comm)>& call) {
  const Comm comm = own(rank).comm;
  Result result = pass_gate(rank, [&] { return call(*api_, comm); });
  if (result == Result::in_progress) {
    const RankGroup::WaitScope scope(group_, rank, "for NCCL to take a call");
    result = await(rank, result, kNever);
  }
  require(rank, name, result);
}

void Team::check(int rank) {
  const Comm comm = own(rank).comm;
  const Result state = pass_gate(rank, [&] { return state_of(comm); });
  if (state != Result::in_progress) require(rank, "a collective", state);
}

// seq_cst on both sides: either the rank sees that the gate is closed, or who closed it sees the rank inside.
Result Team::pass_gate(int rank, const std::function<Result()>& call) {
  const auto self = shared_from_this();  // a thread that comes back too late must find it
  Rank& mine = own(rank);
  std::atomic<Place>& place = mine.place;
  place.store(Place::inside, std::memory_order_seq_cst);
  if (closed_.load(std::memory_order_seq_cst)) {
    place.store(Place::outside, std::memory_order_release);
    group_.token().check();
    throw Cancelled("NCCL was called after its communicators had ended");
  }
  const Result result = call();
  // Here, because nobody may ask once the communicator has been ended.
  if (result != Result::success && result != Result::in_progress) mine.details = api_->last_error(mine.comm);
  // release: who ends the communicators sees what the call has made.
  if (Place inside = Place::inside; !place.compare_exchange_strong(inside, Place::outside, std::memory_order_release))
    sleep_for_ever();
  return result;
}

Result Team::state_of(Comm comm) {
  Result state{};
  const Result asked = api_->async_error(comm, state);
  return asked == Result::success ? state : asked;
}

Result Team::await(int rank, Result result, Clock::time_point limit) {
  const Comm comm = own(rank).comm;
  const auto ended = [&] {
    group_.token().check();
    if (result != Result::in_progress) return true;
    result = pass_gate(rank, [&] { return state_of(comm); });
    return result != Result::in_progress;
  };
  look_until(ended, limit);
  return result;
}

void Team::require(int rank, const char* name, Result result) {
  if (result == Result::success) return;
  throw CollectiveError(failure(rank, name, result));
}

std::string Team::failure(int rank, const char* name, Result result) {
  std::string text = "rank " + std::to_string(rank) + " (" + device_of(rank) + "): " + name +
                     " failed: " + api_->error_string(result) + "; " + usual_cause(result);
  const std::string& details = own(rank).details;
  return details.empty() ? text : text + ". NCCL says: " + details;
}

LaunchEnd Team::abort() { return end("abort", &Team::abort_all); }

LaunchEnd Team::finish() { return end("end", &Team::finish_all); }

void Team::renew(int rank) {
  const CallRecord record{.operation = "connect"};
  group_.meet(rank, record);  // nobody is in a call
  if (rank == first_rank_)
    if (const std::string problem = within_limit("abort", &Team::abort_all); !problem.empty())
      throw CollectiveError(problem);
  group_.meet(rank, record);
  init(rank);
}

LaunchEnd Team::end(const char* what, Result (Team::*how)()) {
  LaunchEnd ending;
  closed_.store(true, std::memory_order_seq_cst);
  all_outside(limits_.call);  // if not, aborting may free those that are inside
  ending.problem = within_limit(what, how);
  if (!all_outside(limits_.end)) abandon_stuck(ending);
  if (!ending.problem.empty()) ending.problem += "start the program anew before it uses these GPUs again";
  return ending;
}

// Calls `how` and returns what went wrong. On a thread of its own, since NCCL may hang: the thread is then left behind.
std::string Team::within_limit(const char* what, Result (Team::*how)()) {
  std::packaged_task<Result()> task([self = shared_from_this(), how] { return (self.get()->*how)(); });
  auto result = task.get_future();
  std::thread thread(std::move(task));
  if (result.wait_for(limits_.end) == std::future_status::timeout) {
    thread.detach();
    return std::string("NCCL did not ") + what + " its communicators within " + seconds_of(limits_.end) +
           ", and a thread was left behind; ";
  }
  thread.join();
  const Result ended = result.get();
  if (ended == Result::success) return "";
  return std::string("NCCL could not ") + what + " its communicators: " + api_->error_string(ended) + "; ";
}

bool Team::all_outside(std::chrono::milliseconds limit) {
  const auto is_outside = [](const Rank& rank) { return rank.place.load(std::memory_order_seq_cst) == Place::outside; };
  return look_until([&] { return std::all_of(ranks_.begin(), ranks_.end(), is_outside); }, Clock::now() + limit);
}

void Team::abandon_stuck(LaunchEnd& ending) {
  for (std::size_t i = 0; i < ranks_.size(); ++i) {
    Place inside = Place::inside;
    if (!ranks_[i].place.compare_exchange_strong(inside, Place::abandoned, std::memory_order_acq_rel)) continue;
    ending.stuck.push_back(static_cast<int>(i));
    const int rank = first_rank_ + static_cast<int>(i);
    ending.problem += "rank " + std::to_string(rank) + " (" + device_of(rank) +
                      ") did not come back from NCCL, and its thread was left behind; ";
  }
}

Result Team::end_each(Result (Api::*how)(Comm)) {
  Result first = Result::success;
  for (Rank& rank : ranks_) {
    const Comm comm = rank.comm.exchange(nullptr);
    const Result result = comm ? (api_.get()->*how)(comm) : Result::success;
    if (first == Result::success) first = result;
  }
  return first;
}

Result Team::abort_all() { return end_each(&Api::abort); }

Result Team::finish_all() {
  const Result finalized = finalize_all();
  if (finalized == Result::success) return end_each(&Api::destroy);
  abort_all();
  return finalized;
}

// All at first, then waits for each: they wait for each other.
Result Team::finalize_all() {
  for (const Rank& rank : ranks_) {
    const Comm comm = rank.comm;
    const Result result = comm ? api_->finalize(comm) : Result::success;
    if (result != Result::success && result != Result::in_progress) return result;
  }
  const auto limit = Clock::now() + limits_.end / 2;  // the rest is for an abort
  for (const Rank& rank : ranks_) {
    Result state = Result::success;
    const auto ended = [&, comm = rank.comm.load()] {
      state = comm ? state_of(comm) : Result::success;
      return state != Result::in_progress;
    };
    look_until(ended, limit);
    if (state != Result::success) return state;
  }
  return Result::success;
}

}  // namespace tandem::comm::nccl
