#include "comm/nodes/watchman.h"

#include <algorithm>

#include "comm/nodes/fields.h"

namespace tandem::comm {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

std::string to_bytes(const NodeFailure& failure) {
  std::string bytes;
  add_field(bytes, std::to_string(failure.node + 1));
  add_field(bytes, failure.host);
  add_field(bytes, std::to_string(failure.rank + 1));
  add_field(bytes, failure.text);
  return bytes;
}

NodeFailure node_failure_of(const std::string& bytes) {
  Fields fields(bytes, -1);
  NodeFailure failure;
  failure.node = static_cast<int>(fields.number(kMostNodes)) - 1;
  failure.host = fields.text();
  failure.rank = static_cast<int>(fields.number(1 << 30)) - 1;
  failure.text = fields.text();
  fields.end();
  return failure;
}

std::string failure_key(const std::string& prefix) { return prefix + "failed"; }

Watchman::Watchman(std::unique_ptr<KeyStore> store, Options options)
    : store_(std::move(store)), options_(std::move(options)), peers_(options_.joined.cards.size()) {
  thread_ = std::thread([this] { run(); });
}

Watchman::~Watchman() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  store_->cancel();
  stop();
}

void Watchman::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

NodeFailure Watchman::tell(const NodeFailure& mine, bool consequence) {
  std::unique_lock lock(mutex_);
  const auto known = [&] { return failure_.has_value() || ended_; };
  if (consequence) changed_.wait_for(lock, std::chrono::seconds(1), known);
  if (!known()) {
    to_tell_ = mine;
    changed_.notify_all();
    changed_.wait_for(lock, options_.silence, known);
  }
  return failure_.value_or(mine);
}

std::vector<std::string> Watchman::ask_others() {
  std::unique_lock lock(mutex_);
  answers_.assign(peers_.size(), "");
  asked_ = true;
  changed_.notify_all();
  changed_.wait_for(lock, options_.silence, [&] { return !asked_ || failure_ || ended_; });
  asked_ = false;
  return answers_;
}

void Watchman::leave() {
  stop();
  if (!store_works_) return;
  // After a failure they only have to hear of it.
  const milliseconds limit = failure_ ? std::min(options_.silence, milliseconds(1000)) : options_.silence;
  try {
    // Links that close too early take what was sent with them. After a failure nobody minds.
    const bool waits = options_.serves_store || !failure_;
    leave_store(*store_, options_.joined.prefix, options_.node, static_cast<int>(peers_.size()), waits, limit,
                // A node of which no rank is to blame is gone.
                failure_ && failure_->rank < 0 ? failure_->node : -1);
  } catch (const StoreError&) {  // then nobody needs to hear of it
  }
}

void Watchman::run() {
  std::unique_lock lock(mutex_);
  while (!stopping_ && !failure_) {
    try {
      answer(lock);
      lock.unlock();
      look();
      lock.lock();
      gather(lock);
    } catch (const std::exception& error) {
      if (!lock.owns_lock()) lock.lock();
      store_works_ = false;
      if (!stopping_) {
        lock.unlock();
        failed(store_failure(error.what()));
        lock.lock();
      }
    }
    changed_.wait_for(lock, options_.beat, [&] { return stopping_ || failure_ || to_tell_ || asked_; });
  }
  ended_ = true;
  changed_.notify_all();
}

// Tells what is to be told: `tell` hears what counts, and so does everybody.
void Watchman::answer(std::unique_lock<std::mutex>& lock) {
  if (!to_tell_) return;
  const std::string mine = to_bytes(*to_tell_);
  lock.unlock();
  const std::string first = store_->set_first(failure_key(options_.joined.prefix), mine);
  lock.lock();
  failure_ = node_failure_of(first);
  changed_.notify_all();
}

// For `ask_others`.
void Watchman::gather(std::unique_lock<std::mutex>& lock) {
  if (!asked_) return;
  lock.unlock();
  std::vector<std::string> answers(peers_.size());
  for (int node = 0; node < static_cast<int>(peers_.size()); ++node)
    if (node != options_.node) answers[static_cast<std::size_t>(node)] = store_->get(key("doing", node)).value_or("");
  lock.lock();
  answers_ = std::move(answers);
  asked_ = false;
  changed_.notify_all();
}

void Watchman::look() {
  if (const auto told = store_->get(failure_key(options_.joined.prefix))) return failed(node_failure_of(*told));
  if (options_.doing) store_->set(key("doing", options_.node), options_.doing());
  store_->add(key("beat", options_.node), 1);
  const auto now = Clock::now();
  // Whoever was stopped himself, or had a slow store, has not listened.
  if (now - looked_ > options_.silence / 2)
    for (Peer& peer : peers_) peer.when = now;
  looked_ = now;
  for (int node = 0; node < static_cast<int>(peers_.size()); ++node)
    if (node != options_.node && (options_.node == 0 || node == 0)) look_after(node, now);
}

void Watchman::look_after(int node, Clock::time_point now) {
  Peer& peer = peers_[static_cast<std::size_t>(node)];
  if (peer.left) return;
  std::string beats = store_->get(key("beat", node)).value_or("");
  if (beats != peer.beats) {
    peer.beats = std::move(beats);
    peer.when = now;
    return;
  }
  // Its last beat may have been just before we looked, and ours comes a beat later.
  if (now - peer.when < options_.silence - std::min(2 * options_.beat, options_.silence / 4)) return;
  if (store_->get(left_key(options_.joined.prefix, node))) {
    peer.left = true;
    return;
  }
  const NodeFailure failure{node, options_.joined.cards[static_cast<std::size_t>(node)].host, -1,
                            options_.joined.name(node) + " has not been heard of for " + to_text(options_.silence) +
                                ": it was killed, is frozen, or cannot be reached"};
  failed(node_failure_of(store_->set_first(failure_key(options_.joined.prefix), to_bytes(failure))));
}

NodeFailure Watchman::store_failure(const std::string& what) const {
  const int node = options_.store_node;
  if (node < 0) return {-1, "", -1, "the launcher's store cannot be reached: " + what};
  return {node, options_.joined.cards[static_cast<std::size_t>(node)].host, -1,
          options_.joined.name(node) + ", which has the nodes' store, cannot be reached: " + what};
}

void Watchman::failed(const NodeFailure& failure) {
  {
    const std::lock_guard lock(mutex_);
    if (failure_) return;
    failure_ = failure;
    changed_.notify_all();
  }
  if (options_.on_failure) options_.on_failure(failure);
}

std::string Watchman::key(const char* what, int node) const {
  return options_.joined.prefix + what + std::to_string(node);
}

}  // namespace tandem::comm
