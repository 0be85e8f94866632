// What all nodes can read and write while they join and go on. Needs no LibTorch.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "tandem/core/error.h"

namespace tandem::comm {

/// The store cannot be reached, or does not answer.
class StoreError : public CollectiveError {
 public:
  using CollectiveError::CollectiveError;
};

/// A node's connection to the store of keys that all nodes share. One thread at a time uses it; `cancel` may be called
/// from any other. Every call ends within the time limit of the connection, or throws StoreError; after an error the
/// connection is of no more use.
class KeyStore {
 public:
  KeyStore() = default;
  virtual ~KeyStore() = default;
  KeyStore(const KeyStore&) = delete;
  KeyStore& operator=(const KeyStore&) = delete;

  /// Writes a value.
  virtual void set(const std::string& key, const std::string& value) = 0;
  /// The value of `key`; nothing where it has none.
  virtual std::optional<std::string> get(const std::string& key) = 0;
  /// Writes a value, which is not empty, unless there is one. Returns what is there then.
  virtual std::string set_first(const std::string& key, const std::string& value) = 0;
  /// Adds to a number, which begins at 0, and returns it.
  virtual std::int64_t add(const std::string& key, std::int64_t number) = 0;
  /// Ends the call under way, and all that come, with StoreError.
  virtual void cancel() noexcept = 0;
};

/// A store in memory, for tests. The connections may outlive it.
class MemoryStore {
 public:
  /// A new connection.
  std::unique_ptr<KeyStore> connect();

  /// From now on all calls throw StoreError.
  void end();

  /// From now on calls wait until they are cancelled, or, unless it is 0, this long.
  void freeze(std::chrono::milliseconds limit = std::chrono::milliseconds(0));

 private:
  class Connection;
  struct State {
    std::mutex mutex;  // guards all below
    std::condition_variable changed;
    std::map<std::string, std::string> values;
    bool ended = false, frozen = false;
    std::chrono::milliseconds limit{0};
  };
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

}  // namespace tandem::comm
