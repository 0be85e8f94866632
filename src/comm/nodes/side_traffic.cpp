#include "comm/nodes/side_traffic.h"

#include <algorithm>

#include "comm/nodes/long_message.h"
#include "tandem/core/error.h"

namespace tandem::comm {
namespace {

constexpr std::int64_t kMostNumber = std::int64_t{1} << 39;

void add_number(std::string& bytes, auto number) {
  add_field(bytes, std::to_string(static_cast<std::int64_t>(number)));
}

// The beginning of what is said about a queue.
std::string about(auto kind, const SideTraffic::Queue& queue) {
  std::string bytes;
  add_number(bytes, kind);
  add_number(bytes, queue.number);
  add_number(bytes, queue.rank);
  return bytes;
}

std::string only(auto kind) {
  std::string bytes;
  add_number(bytes, kind);
  return bytes;
}

}  // namespace

SideTraffic::SideTraffic(NodeExchange& nodes, CancelToken& token)
    : nodes_(nodes), token_(token), place_(nodes.place()), subscription_(token, [this] {
        const std::lock_guard lock(mutex_);
        changed_.notify_all();
      }) {
  try {
    if (place_.node > 0) {
      begin([this] { receive_parcels(); });
    } else {
      begin([this] { send_parcels(); });
      for (int peer = 1; peer < place_.nodes; ++peer) begin([this, peer] { receive_receipts(peer); });
    }
  } catch (...) {  // there are no more threads
    token_.cancel(std::current_exception(), place_.first_rank);
    join();
    throw;
  }
}

SideTraffic::~SideTraffic() {
  if (place_.node == 0) {
    const std::lock_guard lock(mutex_);
    for (int peer = 1; peer < place_.nodes; ++peer) parcels_.push_back({Kind::farewell, peer, {}, {}});
    changed_.notify_all();
  }
  join();
}

void SideTraffic::begin(std::function<void()> work) {
  threads_.emplace_back([this, work = std::move(work)] {
    try {
      work();
    } catch (...) {
      token_.cancel(std::current_exception(), place_.first_rank);
    }
  });
}

void SideTraffic::join() {
  for (std::thread& thread : threads_) thread.join();
}

// ---- node 0

std::size_t SideTraffic::room(const Queue& queue) const {
  const std::lock_guard lock(mutex_);
  const auto found = outlets_.find(queue);
  return found == outlets_.end() ? 0 : found->second.room;
}

bool SideTraffic::push(const Queue& queue, Write write) {
  std::unique_lock lock(mutex_);
  Outlet& outlet = outlets_[queue];
  changed_.wait(lock, [&] { return outlet.room > 0 || outlet.closed || token_.cancelled(); });
  if (token_.cancelled()) {
    lock.unlock();
    token_.throw_cancelled();
  }
  if (outlet.closed) return false;
  outlet.room -= 1;
  parcels_.push_back({Kind::message, nodes_.node_of(queue.rank), queue, std::move(write)});
  changed_.notify_all();
  return true;
}

void SideTraffic::end(const Queue& queue) {
  const std::lock_guard lock(mutex_);
  Outlet& outlet = outlets_[queue];
  outlet.ended = true;
  if (outlet.closed) outlets_.erase(queue);
  parcels_.push_back({Kind::end, nodes_.node_of(queue.rank), queue, {}});
  changed_.notify_all();
}

// Until all have been sent a farewell.
void SideTraffic::send_parcels() {
  for (int to_part_from = place_.nodes - 1; to_part_from > 0;) {
    const auto parcel = next_parcel();
    if (!parcel) return;
    std::string bytes = parcel->kind == Kind::farewell ? only(parcel->kind) : about(parcel->kind, parcel->queue);
    if (parcel->write) parcel->write(bytes);
    send_message(nodes_.link(), parcel->peer, Channel::parcel, bytes);
    if (parcel->kind == Kind::farewell) --to_part_from;
  }
}

// Nothing when the token has fired.
std::optional<SideTraffic::Parcel> SideTraffic::next_parcel() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return !parcels_.empty() || token_.cancelled(); });
    if (token_.cancelled()) return std::nullopt;
    Parcel parcel = std::move(parcels_.front());
    parcels_.pop_front();
    const auto outlet = outlets_.find(parcel.queue);
    const bool wanted = outlet != outlets_.end() && !outlet->second.closed;
    if (parcel.kind != Kind::message || wanted) return parcel;
  }
}

void SideTraffic::receive_receipts(int peer) {
  for (;;) {
    const std::string bytes = receive_message(nodes_.link(), peer, Channel::receipt);
    Fields fields(bytes, peer);
    const auto kind = static_cast<Kind>(fields.number(static_cast<std::int64_t>(Kind::claim)));
    if (kind != Kind::farewell) take_receipt(kind, peer, fields);
    fields.end();
    if (kind == Kind::farewell) return;
  }
}

void SideTraffic::take_receipt(Kind kind, int peer, Fields& fields) {
  if (kind == Kind::claim) {
    const std::string what = fields.text();
    return compare(what, peer, fields.text());
  }
  if (kind != Kind::room && kind != Kind::closed)
    throw LinkError(peer, "node " + std::to_string(peer) + " has sent a receipt of an unknown kind");
  const Queue queue = read_queue(fields, peer);
  const auto count = kind == Kind::room ? static_cast<std::size_t>(fields.number(1 << 20)) : 0;
  const std::lock_guard lock(mutex_);
  Outlet& outlet = outlets_[queue];
  outlet.room += count;
  outlet.closed = outlet.closed || kind == Kind::closed;
  if (outlet.closed && outlet.ended) outlets_.erase(queue);
  changed_.notify_all();
}

void SideTraffic::compare(const std::string& what, int node, std::string value) {
  std::string difference;
  int blamed = node;
  {
    const std::lock_guard lock(mutex_);
    Claim& claim = claims_[what];
    if (node == place_.node)
      claim.mine = std::move(value);
    else
      claim.theirs.emplace_back(node, std::move(value));
    if (!claim.mine) return;
    for (; claim.compared < claim.theirs.size() && difference.empty(); ++claim.compared) {
      const auto& [peer, theirs] = claim.theirs[claim.compared];
      if (theirs == *claim.mine) continue;
      difference = what + " differs between nodes: node 0 has " + *claim.mine + ", node " + std::to_string(peer) +
                   " has " + theirs;
      blamed = peer;
    }
    if (claim.compared + 1 == static_cast<std::size_t>(place_.nodes)) claims_.erase(what);
  }
  if (!difference.empty()) token_.cancel(std::make_exception_ptr(DataError(difference)), nodes_.first_rank_of(blamed));
}

// ---- other nodes

void SideTraffic::open(const Queue& queue, std::size_t room, Reader reader) {
  {
    const std::lock_guard lock(reading_);
    if (ended_.erase(queue) > 0)
      reader.end();
    else
      readers_.emplace(queue, std::move(reader));
  }
  give_room(queue, room);
}

void SideTraffic::taken(const Queue& queue) { give_room(queue, 1); }

void SideTraffic::give_room(const Queue& queue, std::size_t messages) {
  std::string bytes = about(Kind::room, queue);
  add_number(bytes, messages);
  send_receipt(bytes);
}

void SideTraffic::close(const Queue& queue) noexcept {
  try {
    {
      const std::lock_guard lock(reading_);
      if (const auto found = readers_.find(queue); found != readers_.end()) found->second = {};  // until it ends
    }
    send_receipt(about(Kind::closed, queue));
  } catch (...) {
    token_.cancel(std::current_exception(), queue.rank);
  }
}

void SideTraffic::claim(const std::string& what, const std::string& value) {
  if (place_.node == 0) return compare(what, 0, value);
  std::string bytes = only(Kind::claim);
  add_field(bytes, what);
  add_field(bytes, value);
  send_receipt(bytes);
}

void SideTraffic::send_receipt(const std::string& bytes) {
  const std::lock_guard lock(sending_);
  send_message(nodes_.link(), 0, Channel::receipt, bytes);
}

// Until node 0 parts, which gets a farewell too.
void SideTraffic::receive_parcels() {
  for (;;) {
    const std::string bytes = receive_message(nodes_.link(), 0, Channel::parcel);
    Fields fields(bytes, 0);
    const auto kind = static_cast<Kind>(fields.number(static_cast<std::int64_t>(Kind::farewell)));
    if (kind == Kind::farewell) break;
    deliver(kind, fields);
  }
  send_receipt(only(Kind::farewell));
}

void SideTraffic::deliver(Kind kind, Fields& fields) {
  const Queue queue = read_queue(fields, place_.node);
  const std::lock_guard lock(reading_);
  const auto found = readers_.find(queue);
  if (kind == Kind::end && found == readers_.end()) ended_.insert(queue);
  if (found == readers_.end()) return;
  const Reader& reader = found->second;
  if (kind == Kind::message && reader.take) reader.take(fields.rest());
  if (kind == Kind::message) return;
  if (reader.end) reader.end();
  readers_.erase(found);
}

// Of a rank of `node`; throws LinkError otherwise.
SideTraffic::Queue SideTraffic::read_queue(Fields& fields, int node) const {
  const auto number = static_cast<std::uint64_t>(fields.number(kMostNumber));
  const Queue queue{number, static_cast<int>(fields.number(place_.world_size - 1))};
  if (nodes_.node_of(queue.rank) != node)
    throw LinkError(node == place_.node ? 0 : node,
                    "a node has sent something for rank " + std::to_string(queue.rank) + ", which is of another node");
  return queue;
}

}  // namespace tandem::comm
