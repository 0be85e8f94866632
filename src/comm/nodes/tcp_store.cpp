#include "comm/nodes/tcp_store.h"

#include <sys/socket.h>
#include <sys/time.h>

#include <algorithm>
#include <future>
#include <mutex>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "comm/error_text.h"
#include "comm/nodes/broken_pipe.h"

namespace tandem::comm {
namespace {

using std::chrono::milliseconds;

// The first line: LibTorch's errors carry the way to them.
std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

// LibTorch's connection does not give its socket away, and most of its calls have no time limit. So we look which
// socket it has opened, and keep a second descriptor of it: with a time limit for receiving, and to be shut down.
class Connection final : public TcpStore {
 public:
  Connection(const std::string& address, c10d::TCPStoreOptions options, milliseconds call_limit, bool only_ipv4) {
    // So that the new sockets are ours. Whoever gets no answer may hold it for ever: nobody is to reach a port that
    // listens already, for a server that waits for this.
    static std::timed_mutex one_at_a_time;
    const std::unique_lock lock(one_at_a_time, call_limit / 2);
    if (options.isServer) {
      Descriptor listening = listen_at(options.port, only_ipv4);
      options.port = static_cast<std::uint16_t>(port_of(listening));
      options.masterListenFd = listening.release();
    }
    const std::vector<int> before = connections_to(options.port);
    options.waitWorkers = false;
    options.timeout = call_limit;
    store_ = c10::make_intrusive<c10d::TCPStore>(address, options);
    for (const int number : connections_to(store_->getPort()))
      if (std::find(before.begin(), before.end(), number) == before.end())
        sockets_.emplace_back(fcntl(number, F_DUPFD_CLOEXEC, 0));
    const timeval limit{call_limit.count() / 1000, call_limit.count() % 1000 * 1000};
    for (const Descriptor& socket : sockets_) {
      setsockopt(socket.number(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
      setsockopt(socket.number(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    }
  }

  c10::intrusive_ptr<c10d::Store> libtorch() const override { return store_; }

  void set(const std::string& key, const std::string& value) override {
    call([&] { static_cast<c10d::Store&>(*store_).set(key, value); });
  }

  std::optional<std::string> get(const std::string& key) override {
    return call([&]() -> std::optional<std::string> {
      if (!store_->check({key})) return std::nullopt;
      return store_->get_to_str(key);
    });
  }

  std::string set_first(const std::string& key, const std::string& value) override {
    return call([&] { return static_cast<c10d::Store&>(*store_).compareSet(key, "", value); });
  }

  std::int64_t add(const std::string& key, std::int64_t number) override {
    return call([&] { return store_->add(key, number); });
  }

  void cancel() noexcept override {
    for (const Descriptor& socket : sockets_) shutdown(socket.number(), SHUT_RDWR);
  }

 private:
  template <class Call>
  static auto call(const Call& call) -> decltype(call()) {
    const BrokenPipesAreErrors here;
    try {
      return call();
    } catch (const std::exception&) {
      throw StoreError("the store does not answer: " + first_line(text_of(std::current_exception())));
    }
  }

  c10::intrusive_ptr<c10d::TCPStore> store_;
  std::vector<Descriptor> sockets_;
};

// LibTorch waits for ever for an answer of somebody who is no store. Then a thread is left behind.
std::unique_ptr<TcpStore> connect_within_limit(const std::string& address, const c10d::TCPStoreOptions& options,
                                               milliseconds limit, bool only_ipv4 = false) {
  std::packaged_task<std::unique_ptr<TcpStore>()> task([=] {
    const BrokenPipesAreErrors for_its_threads;
    return std::make_unique<Connection>(address, options, limit, only_ipv4);
  });
  auto result = task.get_future();
  std::thread thread(std::move(task));
  const std::string where = "port " + std::to_string(options.port) + " of " + address;
  if (result.wait_for(limit + milliseconds(500)) == std::future_status::timeout) {
    thread.detach();
    throw StoreError("whoever listens at " + where +
                     " gives no answer: it is frozen, or no store of a training; is it the port of node 0?");
  }
  thread.join();
  try {
    return result.get();
  } catch (const ConfigError&) {  // the port is in use
    throw;
  } catch (const std::exception&) {
    throw StoreError("whoever listens at " + where +
                     " does not answer as a store: " + first_line(text_of(std::current_exception())));
  }
}

}  // namespace

std::unique_ptr<TcpStore> serve_store(int port, milliseconds call_limit, bool only_ipv4) {
  c10d::TCPStoreOptions options;
  options.port = static_cast<std::uint16_t>(port);
  options.isServer = true;
  return connect_within_limit("127.0.0.1", options, call_limit, only_ipv4);
}

std::unique_ptr<TcpStore> connect_store(const std::string& address, int port, milliseconds call_limit) {
  if (const std::string error = try_to_connect(address, port, static_cast<int>(call_limit.count())); !error.empty())
    throw StoreError("no store at port " + std::to_string(port) + " of " + address + ": " + error);
  c10d::TCPStoreOptions options;
  options.port = static_cast<std::uint16_t>(port);
  return connect_within_limit(address, options, call_limit);
}

}  // namespace tandem::comm
