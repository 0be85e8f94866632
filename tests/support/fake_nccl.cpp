#include "support/fake_nccl.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <deque>
#include <thread>
#include <utility>

#include "tandem/comm/reduction.h"

namespace tandem::test {
namespace {

using comm::ElementType;
using comm::ReduceOp;
using comm::nccl::Op;
using comm::nccl::Type;

ElementType element_of(Type type) {
  switch (type) {
    case Type::i8: return ElementType::int8;
    case Type::u8: return ElementType::uint8;
    case Type::i32: return ElementType::int32;
    case Type::u32: return ElementType::uint32;
    case Type::i64: return ElementType::int64;
    case Type::u64: return ElementType::uint64;
    case Type::f16: return ElementType::float16;
    case Type::f32: return ElementType::float32;
    case Type::f64: return ElementType::float64;
    case Type::bf16: return ElementType::bfloat16;
  }
  return ElementType::uint8;
}

ReduceOp reduction_of(Op op) {
  switch (op) {
    case Op::sum: return ReduceOp::sum;
    case Op::product: return ReduceOp::product;
    case Op::max: return ReduceOp::max;
    case Op::min: return ReduceOp::min;
    case Op::mean: return ReduceOp::mean;
  }
  return ReduceOp::sum;
}

thread_local int group_depth = 0;

}  // namespace

struct FakeNccl::Operation {
  std::string kind;
  const void* from = nullptr;
  void* to = nullptr;
  std::size_t count = 0;
  Type type = Type::u8;
  Op op = Op::sum;
  int peer = 0;  // or root
  Stream stream = nullptr;

  std::size_t bytes() const { return count * comm::size_of(element_of(type)); }
  bool is_message() const { return kind == "send" || kind == "receive"; }
  bool matches(const Operation& other) const {
    return kind == other.kind && count == other.count && type == other.type && op == other.op && peer == other.peer;
  }
};

struct FakeNccl::Rank {
  std::shared_ptr<Clique> clique;
  int rank = 0;
  bool in_use = false, ended = false;
  int questions = 0;  // until what goes on is done
  std::deque<Operation> issued, messages;
  std::vector<Operation> group;  // opened by `grouper`
  std::thread::id grouper;

  // What comes after an operation runs at once: for all_gather, whose results are used on the same stream, the caller
  // is told to wait.
  bool gathers() const {
    return std::any_of(issued.begin(), issued.end(), [](const Operation& one) { return one.kind == "all_gather"; });
  }
};

struct FakeNccl::Clique {
  std::vector<Rank*> ranks;
  int joined = 0;
  bool complete() const { return joined == static_cast<int>(ranks.size()); }
};

FakeNccl::FakeNccl() = default;
FakeNccl::~FakeNccl() = default;

void FakeNccl::fail(const std::string& function, int rank, Result result) {
  const std::lock_guard lock(mutex_);
  failures_[{function, rank}] = result;
}

void FakeNccl::hang(const std::string& function, int rank) {
  const std::lock_guard lock(mutex_);
  hangs_.insert({function, rank});
}

void FakeNccl::release() {
  const std::lock_guard lock(mutex_);
  hangs_.clear();
  releases_ += 1;
  released_.notify_all();
}

void FakeNccl::delay(const std::string& function, int questions) {
  const std::lock_guard lock(mutex_);
  delays_[function] = questions;
}

void FakeNccl::break_work(Result state) {
  const std::lock_guard lock(mutex_);
  work_state_ = state;
}

std::vector<std::string> FakeNccl::violations() const {
  const std::lock_guard lock(mutex_);
  return violations_;
}

int FakeNccl::alive() const {
  const std::lock_guard lock(mutex_);
  return static_cast<int>(std::count_if(ranks_.begin(), ranks_.end(), [](const auto& rank) { return !rank->ended; }));
}

int FakeNccl::calls(const std::string& function) const {
  const std::lock_guard lock(mutex_);
  const auto found = calls_.find(function);
  return found == calls_.end() ? 0 : found->second;
}

bool FakeNccl::is_hanging() const {
  const std::lock_guard lock(mutex_);
  return hanging_ > 0;
}

std::string FakeNccl::error_string(Result result) { return "fake error " + std::to_string(static_cast<int>(result)); }

// Counts the call, and makes it hang or fail as the test wants.
FakeNccl::Result FakeNccl::enter(const std::string& function, int rank, std::unique_lock<std::mutex>& lock) {
  calls_[function] += 1;
  const auto is_meant = [&](const auto& faults, int r) { return faults.count({function, r}) > 0; };
  if (is_meant(hangs_, rank) || is_meant(hangs_, -1)) {
    hanging_ += 1;
    released_.wait(lock, [&, before = releases_] { return releases_ != before; });
    hanging_ -= 1;
  }
  for (const int r : {rank, -1})
    if (is_meant(failures_, r)) return failures_.at({function, r});
  return Result::success;
}

// One call on a communicator.
struct FakeNccl::Use {
  Use(FakeNccl& nccl, Comm comm, const std::string& function) : rank(static_cast<Rank*>(comm)) {
    if (rank->ended) nccl.violated(function + " on rank " + std::to_string(rank->rank) + " after it ended");
    if (std::exchange(rank->in_use, true)) nccl.violated(function + " during another call");
  }
  ~Use() { rank->in_use = false; }
  Rank* rank;
};

FakeNccl::Result FakeNccl::get_unique_id(comm::nccl::UniqueId& id) {
  std::unique_lock lock(mutex_);
  const Result result = enter("get_unique_id", -1, lock);
  std::snprintf(id.data(), id.size(), "clique %zu", cliques_.size());
  cliques_[id.data()] = std::make_shared<Clique>();
  return result;
}

FakeNccl::Result FakeNccl::init_rank(Comm& comm, int world_size, const comm::nccl::UniqueId& id, int rank) {
  std::unique_lock lock(mutex_);
  auto& clique = cliques_.at(id.data());
  clique->ranks.resize(static_cast<std::size_t>(world_size));
  ranks_.push_back(std::make_unique<Rank>());
  Rank* const made = ranks_.back().get();
  made->clique = clique;
  made->rank = rank;
  comm = made;
  const Result result = enter("init_rank", rank, lock);
  if (result != Result::success) return result;
  clique->ranks[static_cast<std::size_t>(rank)] = made;
  clique->joined += 1;
  return Result::in_progress;
}

FakeNccl::Result FakeNccl::async_error(Comm comm, Result& state) {
  std::unique_lock lock(mutex_);
  const Use use(*this, comm, "async_error");
  const Result result = enter("async_error", use.rank->rank, lock);
  const bool done = use.rank->clique->complete() && use.rank->questions == 0 && !use.rank->gathers();
  if (!done && use.rank->questions > 0) use.rank->questions -= 1;
  state = done ? work_state_ : Result::in_progress;
  return result;
}

FakeNccl::Result FakeNccl::finalize(Comm comm) {
  std::unique_lock lock(mutex_);
  const Use use(*this, comm, "finalize");
  const Result result = enter("finalize", use.rank->rank, lock);
  use.rank->questions = delays_["finalize"];
  return result == Result::success ? Result::in_progress : result;
}

FakeNccl::Result FakeNccl::end(const std::string& function, Comm comm) {
  std::unique_lock lock(mutex_);
  const Use use(*this, comm, function);
  const Result result = enter(function, use.rank->rank, lock);
  use.rank->ended = true;
  return result;
}

FakeNccl::Result FakeNccl::destroy(Comm comm) { return end("destroy", comm); }

FakeNccl::Result FakeNccl::abort(Comm comm) { return end("abort", comm); }

FakeNccl::Result FakeNccl::group_start() {
  group_depth += 1;
  return Result::success;
}

FakeNccl::Result FakeNccl::group_end() {
  std::unique_lock lock(mutex_);
  const Result result = enter("group_end", -1, lock);
  if (--group_depth > 0) return result;
  bool waits = false;
  for (const auto& rank : ranks_) {
    if (rank->grouper != std::this_thread::get_id() || rank->ended) continue;
    // A group that fails starts nothing, as NCCL's does: its caller lets go of the memory.
    std::vector<Operation> group = std::exchange(rank->group, {});
    if (result != Result::success) continue;
    for (Operation& operation : group) issue(*rank, std::move(operation));
    waits = waits || rank->gathers();
  }
  return result == Result::success && waits ? Result::in_progress : result;
}

FakeNccl::Result FakeNccl::enqueue(const std::string& function, Comm comm, Operation operation) {
  std::unique_lock lock(mutex_);
  const Use use(*this, comm, function);
  const Result result = enter(function, use.rank->rank, lock);
  if (result != Result::success) return result;
  operation.kind = function;
  const std::size_t results = function == "all_gather" ? use.rank->clique->ranks.size() : 1;
  if (on_access && operation.from) on_access(operation.stream, operation.from, operation.bytes(), false);
  if (on_access && operation.to) on_access(operation.stream, operation.to, results * operation.bytes(), true);
  if (group_depth > 0) {
    use.rank->grouper = std::this_thread::get_id();
    use.rank->group.push_back(std::move(operation));
    return Result::success;
  }
  issue(*use.rank, std::move(operation));
  use.rank->questions = delays_[function];
  return use.rank->questions > 0 ? Result::in_progress : Result::success;
}

void FakeNccl::issue(Rank& rank, Operation operation) {
  (operation.is_message() ? rank.messages : rank.issued).push_back(std::move(operation));
  carry_out(*rank.clique);
  carry_out_messages(*rank.clique);
}

FakeNccl::Result FakeNccl::all_reduce(const void* from, void* to, std::size_t count, Type type, Op op, Comm comm,
                                      Stream stream) {
  return enqueue("all_reduce", comm, {"", from, to, count, type, op, 0, stream});
}

FakeNccl::Result FakeNccl::reduce(const void* from, void* to, std::size_t count, Type type, Op op, int root, Comm comm,
                                  Stream stream) {
  return enqueue("reduce", comm, {"", from, to, count, type, op, root, stream});
}

FakeNccl::Result FakeNccl::broadcast(const void* from, void* to, std::size_t count, Type type, int root, Comm comm,
                                     Stream stream) {
  return enqueue("broadcast", comm, {"", from, to, count, type, Op::sum, root, stream});
}

FakeNccl::Result FakeNccl::all_gather(const void* from, void* to, std::size_t count, Type type, Comm comm,
                                      Stream stream) {
  return enqueue("all_gather", comm, {"", from, to, count, type, Op::sum, 0, stream});
}

FakeNccl::Result FakeNccl::reduce_scatter(const void* from, void* to, std::size_t count, Type type, Op op, Comm comm,
                                          Stream stream) {
  return enqueue("reduce_scatter", comm, {"", from, to, count, type, op, 0, stream});
}

FakeNccl::Result FakeNccl::send(const void* from, std::size_t count, Type type, int peer, Comm comm, Stream stream) {
  return enqueue("send", comm, {"", from, nullptr, count, type, Op::sum, peer, stream});
}

FakeNccl::Result FakeNccl::receive(void* to, std::size_t count, Type type, int peer, Comm comm, Stream stream) {
  return enqueue("receive", comm, {"", nullptr, to, count, type, Op::sum, peer, stream});
}

namespace {

void reduce_into(std::byte* to, const std::vector<const void*>& from, Type type, Op op, std::size_t count) {
  void* const outputs[] = {to};
  comm::reduce_elements(element_of(type), reduction_of(op), from, outputs, 0, static_cast<std::int64_t>(count));
}

}  // namespace

// The first operation of every rank, as often as all have one.
void FakeNccl::carry_out(Clique& clique) {
  const auto has_one = [](const Rank* rank) { return rank && !rank->issued.empty(); };
  while (clique.complete() && std::all_of(clique.ranks.begin(), clique.ranks.end(), has_one)) {
    std::vector<Operation> all;
    for (Rank* rank : clique.ranks) {
      all.push_back(std::move(rank->issued.front()));
      rank->issued.pop_front();
    }
    const Operation& first = all.front();
    for (const Operation& other : all)
      if (!other.matches(first)) violated("ranks' operations differ: " + first.kind + " and " + other.kind);
    const bool scatters = first.kind == "reduce_scatter", gathers = first.kind == "all_gather";
    const std::size_t whole = scatters ? first.count * all.size() : first.count;
    // Everything is read before anything is written: outputs may be inputs.
    std::vector<const void*> inputs;
    for (const Operation& operation : all) inputs.push_back(operation.from);
    const std::size_t element = comm::size_of(element_of(first.type));
    std::vector<std::byte> result(element * whole * (gathers ? all.size() : 1));
    if (gathers)
      for (std::size_t r = 0; r < all.size() && !result.empty(); ++r)
        std::memcpy(&result[r * first.bytes()], inputs[r], first.bytes());
    else if (first.kind == "broadcast" && !result.empty())
      std::memcpy(result.data(), inputs[static_cast<std::size_t>(first.peer)], first.bytes());
    else if (first.kind != "broadcast" && whole > 0)
      reduce_into(result.data(), inputs, first.type, first.op, whole);
    for (std::size_t r = 0; r < all.size(); ++r) {
      if (first.kind == "reduce" && static_cast<int>(r) != first.peer) continue;
      const std::size_t bytes = scatters ? first.bytes() : result.size();
      if (bytes == 0) continue;
      std::memcpy(all[r].to, &result[scatters ? r * bytes : 0], bytes);
    }
  }
}

// Every message whose sender and receiver are there, in the order of each pair.
void FakeNccl::carry_out_messages(Clique& clique) {
  for (Rank* sender : clique.ranks) {
    if (!sender) continue;
    for (auto sent = sender->messages.begin(); sent != sender->messages.end();) {
      Rank* const receiver = clique.ranks[static_cast<std::size_t>(sent->peer)];
      if (sent->kind != "send" || !receiver) {
        ++sent;
        continue;
      }
      auto& waiting = receiver->messages;
      const auto taken = std::find_if(waiting.begin(), waiting.end(), [&](const Operation& operation) {
        return operation.kind == "receive" && operation.peer == sender->rank;
      });
      if (taken == waiting.end()) {
        ++sent;
        continue;
      }
      if (taken->count != sent->count || taken->type != sent->type) violated("a message's sizes differ");
      if (sent->count > 0) std::memcpy(taken->to, sent->from, sent->bytes());
      if (receiver == sender) {  // one queue: erasing one of them moves the other
        const auto [first, second] = std::minmax({sent - waiting.begin(), taken - waiting.begin()});
        waiting.erase(waiting.begin() + second);
        waiting.erase(waiting.begin() + first);
        sent = waiting.begin();
        continue;
      }
      waiting.erase(taken);
      sent = sender->messages.erase(sent);
    }
  }
}

}  // namespace tandem::test
