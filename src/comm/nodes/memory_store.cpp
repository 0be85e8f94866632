#include <chrono>

#include "comm/nodes/key_store.h"

namespace tandem::comm {

class MemoryStore::Connection final : public KeyStore {
 public:
  explicit Connection(std::shared_ptr<State> state) : state_(std::move(state)) {}

  void set(const std::string& key, const std::string& value) override {
    const auto lock = enter();
    state_->values[key] = value;
  }

  std::optional<std::string> get(const std::string& key) override {
    const auto lock = enter();
    const auto found = state_->values.find(key);
    return found == state_->values.end() ? std::nullopt : std::optional(found->second);
  }

  std::string set_first(const std::string& key, const std::string& value) override {
    const auto lock = enter();
    return state_->values.emplace(key, value).first->second;
  }

  std::int64_t add(const std::string& key, std::int64_t number) override {
    const auto lock = enter();
    std::string& value = state_->values[key];
    const std::int64_t sum = (value.empty() ? 0 : std::stoll(value)) + number;
    value = std::to_string(sum);
    return sum;
  }

  void cancel() noexcept override {
    const std::lock_guard lock(state_->mutex);
    cancelled_ = true;
    state_->changed.notify_all();
  }

 private:
  std::unique_lock<std::mutex> enter() {
    std::unique_lock lock(state_->mutex);
    if (state_->frozen) {
      const auto ended = [&] { return cancelled_ || state_->ended; };
      if (state_->limit.count() == 0)
        state_->changed.wait(lock, ended);
      else if (!state_->changed.wait_for(lock, state_->limit, ended))
        throw StoreError("the store does not answer");
    }
    if (cancelled_) throw StoreError("the connection to the store was cancelled");
    if (state_->ended) throw StoreError("the store has gone");
    return lock;
  }

  const std::shared_ptr<State> state_;
  bool cancelled_ = false;  // guarded by the state's mutex
};

std::unique_ptr<KeyStore> MemoryStore::connect() { return std::make_unique<Connection>(state_); }

void MemoryStore::end() {
  const std::lock_guard lock(state_->mutex);
  state_->ended = true;
  state_->changed.notify_all();
}

void MemoryStore::freeze(std::chrono::milliseconds limit) {
  const std::lock_guard lock(state_->mutex);
  state_->frozen = true;
  state_->limit = limit;
}

}  // namespace tandem::comm
