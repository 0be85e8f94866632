// A store of keys in LibTorch's TCPStore.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include <c10/util/intrusive_ptr.h>

#include "comm/nodes/key_store.h"
#include "comm/nodes/sockets.h"

namespace c10d {
class Store;
}

namespace tandem::comm {

/// A connection to a store.
class TcpStore : public KeyStore {
 public:
  /// LibTorch's own connection, for its classes; they use it while nobody else does.
  virtual c10::intrusive_ptr<c10d::Store> libtorch() const = 0;
};

/// Serves a store at `port`, and connects to it. No others may connect once it is gone. Throws ConfigError when the
/// port is in use.
///
/// LibTorch's server looks up the name of whoever connects, and all wait for that. Where `only_ipv4`, addresses are not
/// IPv4's within IPv6's, which the system's own list of hosts has no names for: no DNS is asked for this host.
std::unique_ptr<TcpStore> serve_store(int port, std::chrono::milliseconds call_limit, bool only_ipv4 = false);

/// Connects to the store at `port` of a numeric address; a call may take `call_limit`. Throws StoreError when nobody
/// listens there, or somebody else does.
std::unique_ptr<TcpStore> connect_store(const std::string& address, int port, std::chrono::milliseconds call_limit);

}  // namespace tandem::comm
