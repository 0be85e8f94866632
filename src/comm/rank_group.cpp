#include "comm/rank_group.h"

#include <cstring>
#include <iomanip>
#include <sstream>
#include <type_traits>
#include <vector>

#include "comm/call_observer.h"
#include "comm/nodes/fields.h"
#include "comm/nodes/side_traffic.h"
#include "tandem/core/error.h"

namespace tandem::comm {

std::atomic<void (*)(const CallRecord&)> call_observer{nullptr};

namespace {

std::int64_t now_ns() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

// A CallRecord that one thread writes and others read, under a number. A cache line, whose writes the processor puts
// together: peers are looking at it all the time.
class alignas(64) RecordCell {
 public:
  void store(std::uint64_t number, const CallRecord& record) noexcept {
    std::array<std::uint64_t, kWords> words{};
    std::memcpy(words.data(), &record, sizeof record);
    // release: who reads one of them sees that the call has begun, and that the record before is gone.
    for (std::size_t i = 0; i < kWords; ++i) words_[i].store(words[i], std::memory_order_release);
    // seq_cst: of two ranks that publish call k and then look at each other's cell, one must see the other's.
    number_.store(number, std::memory_order_seq_cst);
  }

  // seq_cst, see store. Whoever sees the number sees what the rank did before.
  bool has(std::uint64_t number) const noexcept { return number_.load(std::memory_order_seq_cst) == number; }

  // The record is whole if the writer has not begun the call that takes the cell next.
  std::optional<CallRecord> load(std::uint64_t number) const noexcept {
    if (number == 0 || !has(number)) return std::nullopt;
    std::array<std::uint64_t, kWords> words;
    for (std::size_t i = 0; i < kWords; ++i) words[i] = words_[i].load(std::memory_order_acquire);
    CallRecord record;
    std::memcpy(static_cast<void*>(&record), words.data(), sizeof record);
    return record;
  }

 private:
  static_assert(std::is_trivially_copyable_v<CallRecord>);
  static constexpr std::size_t kWords = (sizeof(CallRecord) + 7) / 8;
  std::atomic<std::uint64_t> number_{0};
  std::array<std::atomic<std::uint64_t>, kWords> words_{};
};
static_assert(sizeof(RecordCell) == 64);

std::string mismatch_text(int rank, const CallRecord& mine, int peer, const CallRecord& theirs, std::uint64_t number) {
  std::ostringstream text;
  text << "ranks make different collective calls: call " << number << " is " << to_string(mine) << " on rank " << rank
       << ", but " << to_string(theirs) << " on rank " << peer;
  if (to_string(mine) == to_string(theirs)) text << " (tensors or objects of other types or sizes)";
  text << "; all ranks must make the same calls in the same order";
  return text.str();
}

std::string departed_text(int departed, int waiting, const CallRecord& record, std::uint64_t number) {
  std::ostringstream text;
  text << "rank " << departed << " returned from its body while rank " << waiting << " waits for it in call " << number
       << ", " << to_string(record) << "; all ranks must make the same calls";
  return text.str();
}

}  // namespace

struct alignas(64) RankGroup::Rank {
  // Peers look at call k of this rank until they have passed it; nobody is more than one call apart, so two cells
  // would do, and four leave the last calls readable for the report.
  std::array<RecordCell, 4> cells;
  alignas(64) std::atomic<std::uint64_t> calls{0};  // number of the last call, from 1
  std::atomic<std::int64_t> waiting_since{0};       // steady clock, ns; 0: not waiting
  std::atomic<const char*> waiting_for{nullptr};
  std::atomic<std::int64_t> last_change{0};  // when it last began or ended a wait
  // Read by the peers at each call and written once, so not on a line that changes.
  alignas(64) std::atomic<bool> departed{false};
  // Only of this rank's thread.
  alignas(64) std::uint64_t mails = 0;  // exchanges begun
  bool forbidden = false;               // to make calls
  std::vector<std::uint64_t> met;
  std::array<std::size_t, 2> mail_bytes{};  // of the mailboxes
  // One is written for the next exchange while the peers may still read the other.
  alignas(64) std::array<std::array<std::byte, kMailBytes>, 2> mailboxes;

  const RecordCell& cell(std::uint64_t number) const { return cells[number % cells.size()]; }
  RecordCell& cell(std::uint64_t number) { return cells[number % cells.size()]; }
};

RankGroup::RankGroup(int world_size, CancelToken& token)
    : RankGroup({.local_ranks = world_size, .world_size = world_size}, nullptr, token, false) {}

RankGroup::RankGroup(NodeExchange& nodes, CancelToken& token, bool carries_posted)
    : RankGroup(nodes.place(), nodes.place().nodes > 1 ? &nodes : nullptr, token, carries_posted) {}

RankGroup::RankGroup(const NodePlace& place, NodeExchange* nodes, CancelToken& token, bool carries_posted)
    : place_(place),
      nodes_(nodes),
      token_(token),
      opening_(place.local_ranks, token),
      closing_(place.local_ranks, never_),
      budget_(spin_budget(place.local_ranks)),
      ranks_(new Rank[static_cast<std::size_t>(place.world_size)]),  // not make_unique, which would clear mailboxes
      posted_(place, token, nodes && carries_posted),
      subscription_(token, [this] {
        if (nodes_) nodes_->link().cancel();
        bell_.ring();
      }) {
  for (int rank = 0; rank < world_size(); ++rank) {
    ranks_[rank].last_change.store(now_ns(), std::memory_order_relaxed);
    ranks_[rank].met.resize(static_cast<std::size_t>(world_size()));
  }
}

RankGroup::~RankGroup() = default;

RankGroup::WaitScope::WaitScope(RankGroup& group, int rank, const char* what) : group_(group), rank_(rank) {
  Rank& self = group_.ranks_[rank_];
  self.waiting_for.store(what, std::memory_order_relaxed);
  // release: whoever sees the time sees what is waited for.
  self.waiting_since.store(now_ns(), std::memory_order_release);
}

RankGroup::WaitScope::~WaitScope() {
  Rank& self = group_.ranks_[rank_];
  self.last_change.store(now_ns(), std::memory_order_relaxed);  // reports only
  self.waiting_since.store(0, std::memory_order_release);
}

// Publishes the next call of `rank`, and compares it with those of the peers that have come already; true when that
// was all of them.
bool RankGroup::announce(int rank, const CallRecord& record) {
  token_.check();
  Rank& self = ranks_[rank];
  if (self.forbidden) throw ConfigError(to_string(record) + " waits for the other ranks; call it outside of the step");
  if (const auto observe = call_observer.load(std::memory_order_relaxed); observe && world_size() > 1) observe(record);
  const std::uint64_t number = self.calls.load(std::memory_order_relaxed) + 1;  // only this thread writes it
  self.calls.store(number, std::memory_order_relaxed);                          // reports only
  // With `departed`: either a departing rank sees that we wait, or we see that it has departed.
  self.cell(number).store(number, record);
  if (check_against_peers(rank, number, record)) return true;
  check_departed(rank, number, record);
  return false;
}

std::span<void* const> RankGroup::open(int rank, const CallRecord& record, void* payload) {
  announce(rank, record);
  WaitScope waiting(*this, rank, nullptr);
  return opening_.exchange(rank - place_.first_rank, payload);
}

SideTraffic& RankGroup::side_traffic() {
  if (!side_traffic_) side_traffic_ = std::make_unique<SideTraffic>(*nodes_, token_);
  return *side_traffic_;
}

void RankGroup::forbid_calls(int rank, bool forbidden) noexcept { ranks_[rank].forbidden = forbidden; }

std::byte* RankGroup::outbox(int rank) noexcept {
  Rank& self = ranks_[rank];
  return self.mailboxes[(self.mails + 1) % 2].data();
}

const std::byte* RankGroup::mail(int rank, int peer) const noexcept {
  return ranks_[peer].mailboxes[ranks_[rank].mails % 2].data();
}

void RankGroup::exchange_mail(int rank, const CallRecord& record, std::size_t bytes) {
  Rank& self = ranks_[rank];
  self.mail_bytes[(self.mails + 1) % 2] = bytes;
  const bool compared = announce(rank, record);
  self.mails += 1;  // a call that was refused is none
  const std::uint64_t number = self.calls.load(std::memory_order_relaxed);
  if (nodes_ && last_of_node(self.mails)) carry_mail(rank, record, number);
  // Of ranks that arrive at the same time, at least the last in the order of seq_cst sees all, and wakes the others.
  if (!all_arrived(number))
    await_all(rank, number);
  else
    bell_.ring_if_awaited();
  if (!compared) check_against_peers(rank, number, record);
}

// Whether the ranks of this node have all written their mail of this number, of which this is the last one's.
bool RankGroup::last_of_node(std::uint64_t mails) noexcept {
  // acq_rel: who writes the last one sees all others.
  return mails_written_.fetch_add(1, std::memory_order_acq_rel) + 1 ==
         mails * static_cast<std::uint64_t>(place_.local_ranks);
}

// Gets the mail of the other nodes' ranks, and makes their calls here. What goes wrong ends the launch.
void RankGroup::carry_mail(int rank, const CallRecord& record, std::uint64_t number) {
  try {
    const WaitScope waiting(*this, rank, "for the other nodes");
    const auto messages = nodes_->exchange_all(mail_of_node(number, ranks_[rank].mails));
    for (int node = 0; node < place_.nodes; ++node)
      if (node != place_.node) deliver(messages[static_cast<std::size_t>(node)], node, rank, record, number);
    bell_.ring_if_awaited();
  } catch (...) {
    token_.cancel(std::current_exception(), rank);
    throw;
  }
}

std::string RankGroup::mail_of_node(std::uint64_t number, std::uint64_t mails) const {
  std::string message;
  add_field(message, std::to_string(number));
  for (int rank = place_.first_rank; rank < place_.first_rank + place_.local_ranks; ++rank) {
    add_field(message, to_bytes(ranks_[rank].cell(number).load(number).value()));
    const auto& box = ranks_[rank].mailboxes[mails % 2];
    add_field(message, std::string(reinterpret_cast<const char*>(box.data()), ranks_[rank].mail_bytes[mails % 2]));
  }
  return message;
}

// `rank`, `record` and `number`: the call in which this node waits for `node`.
void RankGroup::deliver(const std::string& message, int node, int rank, const CallRecord& record,
                        std::uint64_t number) {
  const int first = nodes_->first_rank_of(node), last = nodes_->first_rank_of(node + 1);
  if (message.empty()) {  // a farewell
    const CollectiveError error(departed_text(first, rank, record, number));
    token_.cancel(std::make_exception_ptr(error), first);
    throw error;
  }
  Fields fields(message, node);
  const auto theirs = static_cast<std::uint64_t>(fields.number(std::int64_t{1} << 39));
  for (int peer = first; peer < last; ++peer) {
    const CallRecord call = call_record_of(fields.text(), node, texts_);
    const std::string mail = fields.text();
    if (theirs != number)
      throw CollectiveError(mismatch_text(rank, record, peer, call, number) + " (it is call " + std::to_string(theirs) +
                            " of rank " + std::to_string(peer) + ")");
    if (mail.size() > kMailBytes) throw LinkError(node, "node " + std::to_string(node) + " sent more than a mail");
    std::memcpy(ranks_[peer].mailboxes[ranks_[rank].mails % 2].data(), mail.data(), mail.size());
    ranks_[peer].calls.store(number, std::memory_order_relaxed);
    ranks_[peer].cell(number).store(number, call);
  }
  fields.end();
}

// When the last rank of this node has departed: tells the other nodes, and hears whether theirs have too.
void RankGroup::say_farewell(int rank) {
  try {
    const auto messages = nodes_->exchange_all("");
    for (int node = 0; node < place_.nodes; ++node) {
      const std::string& message = messages[static_cast<std::size_t>(node)];
      if (message.empty()) continue;
      Fields fields(message, node);
      const auto number = static_cast<std::uint64_t>(fields.number(std::int64_t{1} << 39));
      const CallRecord call = call_record_of(fields.text(), node, texts_);
      throw CollectiveError(departed_text(rank, nodes_->first_rank_of(node), call, number));
    }
  } catch (...) {
    token_.cancel(std::current_exception(), rank);
  }
}

GatheredBytes RankGroup::gather_bytes(int rank, const CallRecord& record, const std::string& mine) {
  std::vector<std::string> all;
  if (!nodes_) {
    const Call call(*this, rank, record, &mine);
    for (int peer = 0; peer < world_size(); ++peer) all.push_back(call.payload<std::string>(peer));
    return GatheredBytes(std::move(all));
  }
  struct Part {
    const std::string* mine;
    GatheredBytes* all;
  };
  GatheredBytes gathered;
  const Part part{&mine, &gathered};
  carry(rank, record, &part, [&](const Call& call, NodeExchange& nodes) {
    const auto part_of = [&](int i) { return call.payload<Part>(place_.first_rank + i); };
    std::string message;
    for (int i = 0; i < place_.local_ranks; ++i) add_field(message, *part_of(i).mine);
    const auto messages = nodes.exchange_all(message);
    for (int node = 0; node < place_.nodes; ++node) {
      Fields fields(messages[static_cast<std::size_t>(node)], node);
      for (int i = 0; i < nodes.ranks_of_nodes()[static_cast<std::size_t>(node)]; ++i) all.push_back(fields.text());
      fields.end();
    }
    const GatheredBytes shared(std::move(all));
    for (int i = 0; i < place_.local_ranks; ++i) *part_of(i).all = shared;
  });
  return gathered;
}

void RankGroup::carry(int rank, const CallRecord& record, const void* payload,
                      const std::function<void(const Call&, NodeExchange&)>& work) {
  meet(rank, record);
  {
    const Call call(*this, rank, record, payload);
    if (rank == place_.first_rank) try {
        const WaitScope waiting(*this, rank, "for the other nodes");
        work(call, *nodes_);
      } catch (...) {
        token_.cancel(std::current_exception(), rank);  // before the others go on
      }
  }
  token_.check();
}

std::span<const std::uint64_t> RankGroup::meet(int rank, const CallRecord& record, std::uint64_t value) {
  std::memcpy(outbox(rank), &value, sizeof value);
  exchange_mail(rank, record, sizeof value);
  auto& met = ranks_[rank].met;
  for (int peer = 0; peer < world_size(); ++peer)
    std::memcpy(&met[static_cast<std::size_t>(peer)], mail(rank, peer), sizeof value);
  return met;
}

bool RankGroup::all_arrived(std::uint64_t number) const noexcept {
  for (int rank = 0; rank < world_size(); ++rank)
    if (!ranks_[rank].cell(number).has(number)) return false;
  return true;
}

void RankGroup::await_all(int rank, std::uint64_t number) {
  const auto done = [&] { return all_arrived(number) || token_.cancelled(); };
  if (!spin_until(done, budget_.spins)) {
    const WaitScope waiting(*this, rank, nullptr);
    bell_.wait(done, budget_.yields);
  }
  if (!all_arrived(number)) token_.throw_cancelled();
}

RankGroup::Call::Call(RankGroup& group, int rank, const CallRecord& record, const void* payload)
    : group_(group), rank_(rank), payloads_(group.open(rank, record, const_cast<void*>(payload))) {}

RankGroup::Call::~Call() {
  WaitScope waiting(group_, rank_, nullptr);
  group_.closing_.wait(rank_ - group_.place_.first_rank);
}

// True when all peers have made the same call already.
bool RankGroup::check_against_peers(int rank, std::uint64_t number, const CallRecord& record) const {
  bool all = true;
  for (int peer = 0; peer < world_size(); ++peer) {
    if (peer == rank) continue;
    const auto theirs = ranks_[peer].cell(number).load(number);
    if (theirs && *theirs != record) {
      const CollectiveError error(mismatch_text(rank, record, peer, *theirs, number));
      // Before it is thrown: a body that swallows it must not go on with calls that the others take for this one.
      token_.cancel(std::make_exception_ptr(error), rank);
      throw error;
    }
    all = all && theirs;
  }
  return all;
}

void RankGroup::check_departed(int rank, std::uint64_t number, const CallRecord& record) const {
  for (int peer = 0; peer < world_size(); ++peer) {
    const Rank& other = ranks_[peer];
    if (!other.departed.load(std::memory_order_seq_cst) || other.cell(number).has(number)) continue;
    const CollectiveError error(departed_text(peer, rank, record, number));
    // Before it is thrown: the one to blame is not the rank that finds out.
    token_.cancel(std::make_exception_ptr(error), peer);
    throw error;
  }
}

void RankGroup::depart(int rank) {
  posted_.depart(rank);
  Rank& self = ranks_[rank];
  self.departed.store(true, std::memory_order_seq_cst);
  const std::uint64_t next = self.calls.load(std::memory_order_relaxed) + 1;  // that a peer may wait for us in
  for (int peer = 0; peer < world_size(); ++peer) {
    const auto record = ranks_[peer].cell(next).load(next);
    if (peer == rank || !record) continue;
    const std::string text = departed_text(rank, peer, *record, next);
    token_.cancel(std::make_exception_ptr(CollectiveError(text)), rank);
    return;
  }
  const bool last = departed_.fetch_add(1, std::memory_order_acq_rel) + 1 == place_.local_ranks;
  if (nodes_ && last && !token_.cancelled()) say_farewell(rank);
}

std::optional<int> RankGroup::overdue(std::chrono::nanoseconds limit) const {
  const std::int64_t now = now_ns();
  bool late = false;
  std::optional<int> blamed;
  for (int rank = place_.first_rank; rank < place_.first_rank + place_.local_ranks; ++rank) {
    const std::int64_t since = ranks_[rank].waiting_since.load(std::memory_order_acquire);
    late = late || (since != 0 && now - since > limit.count());
    if (since == 0 && !blamed) blamed = rank;
  }
  if (!late) return std::nullopt;
  return blamed.value_or(place_.first_rank);
}

bool RankGroup::waits(int rank) const noexcept {
  return ranks_[rank].waiting_since.load(std::memory_order_relaxed) != 0;
}

void RankGroup::forgive_waits() noexcept {
  for (int rank = place_.first_rank; rank < place_.first_rank + place_.local_ranks; ++rank) {
    std::int64_t since = ranks_[rank].waiting_since.load(std::memory_order_acquire);
    // Not when it has ended its wait meanwhile.
    if (since != 0) ranks_[rank].waiting_since.compare_exchange_strong(since, now_ns(), std::memory_order_acq_rel);
  }
}

std::string RankGroup::report() const {
  std::ostringstream text;
  text << std::fixed << std::setprecision(1);
  const std::int64_t now = now_ns();
  for (int rank = place_.first_rank; rank < place_.first_rank + place_.local_ranks; ++rank) {
    const Rank& self = ranks_[rank];
    const std::uint64_t number = self.calls.load(std::memory_order_seq_cst);
    auto record = self.cell(number).load(number);
    if (self.calls.load(std::memory_order_relaxed) >= number + self.cells.size()) record.reset();  // it may be torn
    const std::string call =
        record ? "call " + std::to_string(number) + ", " + to_string(*record) : std::string("no collective call yet");
    const std::int64_t since = self.waiting_since.load(std::memory_order_acquire);
    const char* what = self.waiting_for.load(std::memory_order_relaxed);
    if (rank > place_.first_rank) text << '\n';
    text << "rank " << rank << ": ";
    if (self.departed.load(std::memory_order_acquire))
      text << "has returned; its last was " << call;
    else if (since != 0)
      text << "waiting " << static_cast<double>(now - since) * 1e-9 << " s " << (what ? what : "in ")
           << (what ? "; its last was " : "") << call;
    else
      text << "running for " << static_cast<double>(now - self.last_change.load(std::memory_order_relaxed)) * 1e-9
           << " s since it last waited; its last was " << call;
  }
  return text.str();
}

}  // namespace tandem::comm
