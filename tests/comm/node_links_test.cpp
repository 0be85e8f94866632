// Nodes' links over LibTorch's Gloo, and their store over its TCPStore, on loopback.
#define USE_C10D_GLOO  // for a node that sends garbage

#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <set>

#include <ATen/ops/from_blob.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include "comm/nodes/broken_pipe.h"
#include "comm/nodes/gloo_link.h"
#include "comm/nodes/tcp_store.h"
#include "support/catch.h"
#include "support/error_of.h"
#include "support/node_sums.h"

using namespace tandem;
using namespace tandem::comm;
using namespace tandem::test;
using namespace std::chrono_literals;

namespace {

// A store, and connections to it.
struct Stores {
  Stores() {
    port = port_of(listen_at(0));
    server = serve_store(port, 10s);
  }
  std::unique_ptr<TcpStore> connect() const { return connect_store("127.0.0.1", port, 10s); }

  int port;
  std::unique_ptr<TcpStore> server;
};

// Runs `body` on nodes that are threads, each with a link; the links go when all have ended. Throws what the first did.
void run_nodes(int nodes, const std::function<void(NodeLink&)>& body) {
  const Stores stores;
  std::vector<std::unique_ptr<TcpStore>> connections(static_cast<std::size_t>(nodes));
  std::vector<std::unique_ptr<NodeLink>> links(static_cast<std::size_t>(nodes));
  std::vector<std::exception_ptr> errors(static_cast<std::size_t>(nodes));
  std::vector<std::thread> threads;
  for (int node = 0; node < nodes; ++node)
    threads.emplace_back([&, at = static_cast<std::size_t>(node), node] {
      try {
        connections[at] = stores.connect();
        links[at] = make_gloo_link(connections[at]->libtorch(), node, nodes, {.address = "127.0.0.1"});
        body(*links[at]);
        links[at]->finish();
      } catch (...) {
        errors[at] = std::current_exception();
        links[at].reset();  // as a process that ends
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
}

Frame frame_of(NodeLink& link, const std::string& text) {
  Frame frame = link.frame();
  frame.resize(text.size());
  std::memcpy(frame.bytes().data(), text.data(), text.size());
  return frame;
}

// What node 1 gets when node 0 is Gloo alone, and sends `garbage`.
std::string error_for(const std::string& garbage) {
  const Stores stores;
  std::string error;
  std::thread receiver([&] {
    const auto connection = stores.connect();
    const auto link =
        make_gloo_link(connection->libtorch(), 1, 2, {.address = "127.0.0.1", .names = {"node 0 (host a)", ""}});
    error = error_of<LinkError>([&] { link->receive(0, Channel::meeting); });
  });
  const auto connection = stores.connect();
  auto options = c10d::ProcessGroupGloo::Options::create(10s);
  options->devices.assign(kChannels, c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1"));  // as a link does
  const auto gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(connection->libtorch(), 0, 2, options);
  std::vector<at::Tensor> bytes{
      at::from_blob(const_cast<char*>(garbage.data()), {static_cast<std::int64_t>(garbage.size())}, at::kByte)};
  gloo->send(bytes, 1, static_cast<int>(Channel::meeting))->wait();
  receiver.join();
  return error;
}

// A message as node 0 sends it, to be spoilt.
std::string message_of(const std::string& text, std::uint64_t sequence = 0, std::uint32_t sender = 0,
                       std::uint32_t channel = static_cast<std::uint32_t>(Channel::meeting)) {
  constexpr std::uint64_t kMagic = 0x54616e64656d2e31;
  const std::uint64_t lane = std::uint64_t{sender} << 32 | std::uint64_t{channel} << 56;
  const std::uint64_t size = text.size(), trailer = ~(sequence ^ size ^ lane) ^ kMagic;
  std::string bytes(Frame::kEnvelope, '\0');
  std::memcpy(&bytes[0], &kMagic, 8);
  std::memcpy(&bytes[8], &sequence, 8);
  std::memcpy(&bytes[16], &sender, 4);
  std::memcpy(&bytes[20], &channel, 4);
  std::memcpy(&bytes[24], &size, 8);
  bytes += text;
  return bytes.append(reinterpret_cast<const char*>(&trailer), sizeof trailer);
}

// Passes bytes to a store and back, until it is told to keep them.
class Passage {
 public:
  explicit Passage(int to) : to_(to), listening_(listen_at(0)) {
    thread_ = std::thread([this] {
      close(accept(listening_.number(), nullptr, nullptr));  // whether somebody listens
      const Descriptor from(accept(listening_.number(), nullptr, nullptr));
      Descriptor onwards(socket(AF_INET, SOCK_STREAM, 0));
      sockaddr_in address{};
      address.sin_family = AF_INET;
      address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      address.sin_port = htons(static_cast<std::uint16_t>(to_));
      if (connect(onwards.number(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return;
      std::thread back([&] { pass(onwards.number(), from.number()); });
      pass(from.number(), onwards.number());
      shutdown(onwards.number(), SHUT_RDWR);
      back.join();
    });
  }
  ~Passage() { thread_.join(); }

  int port() const { return port_of(listening_); }
  void freeze() { frozen_ = true; }

 private:
  void pass(int from, int to) {
    char bytes[4096];
    for (ssize_t count; (count = recv(from, bytes, sizeof bytes, 0)) > 0;)
      if (!frozen_ && send(to, bytes, static_cast<std::size_t>(count), MSG_NOSIGNAL) != count) break;
  }

  const int to_;
  Descriptor listening_;
  std::atomic<bool> frozen_{false};
  std::thread thread_;
};

}  // namespace

TEST_CASE("over Gloo nodes get the bits of one process") {
  const std::vector<std::vector<int>> layouts{{1, 1}, {2, 1}, {1, 2, 1}, {2, 1, 3, 1}};
  for (const std::vector<int>& layout : layouts) {
    const int world = std::accumulate(layout.begin(), layout.end(), 0);
    struct Sum {
      std::vector<RowKind> rows;
      std::vector<RankRows> wanted, got;
    };
    std::vector<Sum> sums;
    for (const ElementType type : kAllTypes)
      for (const std::int64_t elements : {5, 3000, 140'003}) {
        const ReduceOp op = is_real(type) ? ReduceOp::mean : ReduceOp::sum;
        const std::vector<RowKind> rows{{type, elements}, {type, 1}};
        sums.push_back({rows, rows_of(rows, op, world, is_real(type)), rows_of(rows, op, world, is_real(type))});
        reduce_in_one_process(sums.back().wanted);
      }
    run_nodes(static_cast<int>(layout.size()), [&](NodeLink& link) {
      NodeChain chain(link, layout);
      const auto first = static_cast<std::size_t>(std::accumulate(layout.begin(), layout.begin() + link.node(), 0));
      for (Sum& sum : sums) {
        std::vector<const SharedReducer::Lists*> mine;
        for (int rank = 0; rank < layout[static_cast<std::size_t>(link.node())]; ++rank)
          mine.push_back(&sum.got[first + static_cast<std::size_t>(rank)].lists);
        chain.reduce(mine);
      }
    });
    for (const Sum& sum : sums) {
      CAPTURE(layout, static_cast<int>(sum.rows[0].type), sum.rows[0].elements);
      CHECK(wrong_ranks(sum.got, sum.wanted) == 0);
    }
  }
}

TEST_CASE("over Gloo messages of all lengths arrive whole and in order") {
  std::atomic<int> wrong{0};
  run_nodes(3, [&](NodeLink& link) {
    for (std::size_t length : {0, 1, 63, 64, 4096, 262'143, 262'144})
      for (int i = 0; i < 5; ++i) {
        const std::string mine(length, static_cast<char>('a' + link.node() + i));
        const auto frames = exchange(link, Channel::meeting, std::as_bytes(std::span(mine)));
        for (int peer = 0; peer < 3; ++peer) {
          const auto bytes = frames[static_cast<std::size_t>(peer)].bytes();
          wrong += std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()) !=
                   std::string(length, static_cast<char>('a' + peer + i));
        }
      }
  });
  CHECK(wrong == 0);
}

TEST_CASE("a cancel from another thread ends what waits for Gloo, whichever way") {
  for (const bool sends : {false, true}) {
    const auto error = error_of<LinkError>([&] {
      run_nodes(2, [&](NodeLink& link) {
        if (link.node() == 0) {
          // Comes when the other has seen its cancel.
          link.receive(1, Channel::trial);
          return;
        }
        std::atomic<bool> waits{false};
        std::thread canceller([&] {
          while (!waits) std::this_thread::yield();
          std::this_thread::sleep_for(20ms);
          link.cancel();
        });
        CHECK_THROWS_AS(
            [&] {
              waits = true;
              if (!sends) link.receive(0, Channel::meeting);
              for (;;) link.send(0, Channel::meeting, frame_of(link, "x"));  // nobody takes them
            }(),
            Cancelled);
        CHECK_THROWS_AS(link.receive(0, Channel::meeting), Cancelled);
        CHECK_THROWS_AS(link.send(0, Channel::meeting, link.frame()), Cancelled);
        canceller.join();
        throw std::runtime_error("its process ends");
      });
    });
    CHECK_THAT(error, ContainsSubstring("the link to node 1 failed"));
  }
}

TEST_CASE("over Gloo whoever waits for a node that has gone gets an error that names it") {
  std::string error;
  CHECK_THROWS_AS(
      [&] {
        run_nodes(2, [&](NodeLink& link) {
          if (link.node() == 0) throw std::runtime_error("its process ends");
          error = error_of<LinkError>([&] { link.receive(0, Channel::result); });
        });
      }(),
      std::runtime_error);
  CHECK_THAT(error, ContainsSubstring("the link to node 0 failed: "));
}

TEST_CASE("what is no message, or another one, is an error that names the sender, never data") {
  const std::string good = message_of("hello");
  CHECK_THAT(error_for("GET / HTTP/1.0\r\n\r\n"),
             ContainsSubstring("node 0 (host a)") && ContainsSubstring("no message"));
  CHECK_THAT(error_for(std::string(200'000, '\xff')), ContainsSubstring("no message"));
  CHECK_THAT(error_for("x"), ContainsSubstring("no message"));
  std::string long_one = good;
  long_one[24 + 5] = 1;  // 2^40 bytes
  CHECK_THAT(error_for(long_one), ContainsSubstring("no message"));
  CHECK_THAT(error_for(good.substr(0, good.size() - 8)), ContainsSubstring("cut off"));
  CHECK_THAT(error_for(good.substr(0, 64)), ContainsSubstring("cut off"));
  CHECK_THAT(error_for(message_of("hello", 1)), ContainsSubstring("message 1 of node 0"));
  CHECK_THAT(error_for(message_of("hello", 0, 7)), ContainsSubstring("of node 7"));
  CHECK_THAT(error_for(message_of("hello", 0, 0, 3)), ContainsSubstring("channel 3, in place of"));
  CHECK(error_for(good).empty());  // and so all of these come from what was spoilt
}

TEST_CASE("neither this thread nor one of Gloo's or the store's ends the process when it writes to who has gone") {
  const auto threads = [] {
    std::set<std::string> found;
    for (const auto& thread : std::filesystem::directory_iterator("/proc/self/task")) found.insert(thread.path());
    return found;
  };
  const auto blocks_sigpipe = [](const std::string& thread) {
    std::ifstream status(thread + "/status");
    for (std::string line; std::getline(status, line);)
      if (line.starts_with("SigBlk:")) return (std::stoull(line.substr(7), nullptr, 16) >> (SIGPIPE - 1) & 1) == 1;
    return false;
  };
  const auto before = threads();
  const Stores stores;
  const auto connection = stores.connect();
  std::unique_ptr<NodeLink> other;
  std::thread peer(
      [&, of_peer = stores.connect()] { other = make_gloo_link(of_peer->libtorch(), 1, 2, {.address = "127.0.0.1"}); });
  const auto link = make_gloo_link(connection->libtorch(), 0, 2, {.address = "127.0.0.1"});
  peer.join();
  int started = 0;
  for (const std::string& thread : threads()) {
    if (before.contains(thread)) continue;
    CAPTURE(thread);
    ++started;
    CHECK(blocks_sigpipe(thread));
  }
  CHECK(started >= 3);  // the store's, and one of each link at least
  CHECK(!blocks_sigpipe("/proc/thread-self"));

  int ends[2];
  REQUIRE(pipe(ends) == 0);
  close(ends[0]);
  {
    const BrokenPipesAreErrors here;
    CHECK(write(ends[1], "x", 1) == -1);
    CHECK(errno == EPIPE);
  }
  close(ends[1]);
}

TEST_CASE("a store over TCP keeps what nodes write, and the first of several") {
  const Stores stores;
  const auto a = stores.connect(), b = stores.connect();
  CHECK(!a->get("key"));
  a->set("key", std::string("a\0b", 3));
  CHECK(b->get("key") == std::string("a\0b", 3));
  CHECK(b->set_first("key", "other") == std::string("a\0b", 3));
  CHECK(b->set_first("new", "first") == "first");
  CHECK(a->set_first("new", "second") == "first");
  CHECK(a->add("count", 2) == 2);
  CHECK(b->add("count", 0) == 2);
  a->cancel();
  CHECK_THAT(error_of<StoreError>([&] { a->get("key"); }), ContainsSubstring("does not answer"));
  CHECK(b->get("new") == "first");  // its own connection only
}

TEST_CASE("a call of a store that does not answer ends with its time limit, or with a cancel") {
  const Stores stores;
  {
    Passage passage(stores.port);
    const auto store = connect_store("127.0.0.1", passage.port(), 2s);
    CHECK(store->add("count", 1) == 1);
    passage.freeze();
    CHECK_THAT(error_of<StoreError>([&] { store->add("count", 1); }), ContainsSubstring("does not answer"));
    store->cancel();
  }
  Passage passage(stores.port);
  const auto store = connect_store("127.0.0.1", passage.port(), 1h);
  passage.freeze();
  std::thread canceller([&] {
    std::this_thread::sleep_for(50ms);
    store->cancel();
  });
  CHECK_THAT(error_of<StoreError>([&] { store->get("count"); }), ContainsSubstring("does not answer"));
  canceller.join();
}

TEST_CASE("who listens and is no store is named, as is that nobody does") {
  const Descriptor silent = listen_at(0);
  CHECK_THAT(error_of<StoreError>([&] { connect_store("127.0.0.1", port_of(silent), 300ms); }),
             ContainsSubstring("port " + std::to_string(port_of(silent)) + " of 127.0.0.1 gives no answer"));
  int closed = 0;
  {
    const Descriptor gone = listen_at(0);
    closed = port_of(gone);
  }
  CHECK_THAT(error_of<StoreError>([&] { connect_store("127.0.0.1", closed, 300ms); }),
             ContainsSubstring("Connection refused"));
}

TEST_CASE("a store lives through what strangers send to its port") {
  const Stores stores;
  std::mt19937 random(1);
  for (int i = 0; i < 20; ++i) {
    const Descriptor stranger(socket(AF_INET, SOCK_STREAM, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<std::uint16_t>(stores.port));
    REQUIRE(connect(stranger.number(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
    std::string garbage(1000, ' ');
    for (char& c : garbage) c = static_cast<char>(random());
    send(stranger.number(), garbage.data(), garbage.size(), MSG_NOSIGNAL);
  }
  CHECK(stores.connect()->add("count", 1) == 1);
}
