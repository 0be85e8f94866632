#include "core/rendezvous.h"

#include <random>
#include <thread>
#include <vector>

#include "support/catch.h"
#include "tandem/core/error.h"

using tandem::CancelToken;
using tandem::Rendezvous;

namespace {

// Runs body(party) on a thread each.
template <class Body>
void run_parties(int parties, Body body) {
  std::vector<std::thread> threads;
  for (int party = 0; party < parties; ++party) threads.emplace_back([&, party] { body(party); });
  for (auto& thread : threads) thread.join();
}

void* as_payload(std::uintptr_t value) { return reinterpret_cast<void*>(value); }

}  // namespace

TEST_CASE("everyone gets everyone's payload, round after round") {
  const int parties = GENERATE(1, 2, 3, 8);
  CancelToken token;
  Rendezvous rendezvous(parties, token);
  std::atomic<int> wrong{0};
  run_parties(parties, [&](int party) {
    for (std::uintptr_t round = 0; round < 3000; ++round) {
      const auto payloads = rendezvous.exchange(party, as_payload(round * 100 + static_cast<unsigned>(party)));
      for (int peer = 0; peer < parties; ++peer)
        if (payloads[static_cast<std::size_t>(peer)] != as_payload(round * 100 + static_cast<unsigned>(peer)))
          wrong += 1;
    }
  });
  CHECK(wrong == 0);
}

TEST_CASE("nobody leaves before the last has come") {
  CancelToken token;
  Rendezvous rendezvous(4, token);
  std::atomic<int> arrived{0}, early{0};
  run_parties(4, [&](int party) {
    for (int round = 1; round <= 500; ++round) {
      arrived += 1;
      rendezvous.wait(party);
      if (arrived < 4 * round) early += 1;
      rendezvous.wait(party);
    }
  });
  CHECK(early == 0);
}

TEST_CASE("a cancel ends those who sleep in a rendezvous") {
  CancelToken token;
  Rendezvous rendezvous(3, token);
  std::atomic<int> cancelled{0};
  std::thread canceller([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    token.cancel(std::make_exception_ptr(std::runtime_error("enough")), 2);
  });
  run_parties(2, [&](int party) {
    try {
      rendezvous.wait(party);
    } catch (const tandem::Cancelled&) {
      cancelled += 1;
    }
  });
  canceller.join();
  CHECK(cancelled == 2);
}

TEST_CASE("a rendezvous after the cancel throws at once") {
  CancelToken token;
  Rendezvous rendezvous(2, token);
  token.cancel(nullptr);
  CHECK_THROWS_AS(rendezvous.wait(0), tandem::Cancelled);
}

TEST_CASE("a round completes for all parties or for none, whenever the cancel comes") {
  std::mt19937 random(1);
  for (int trial = 0; trial < 300; ++trial) {
    CancelToken token;
    Rendezvous rendezvous(3, token);
    int completed[3] = {};
    const auto delay = std::chrono::microseconds(random() % 200);
    std::thread canceller([&] {
      std::this_thread::sleep_for(delay);
      token.cancel(nullptr);
    });
    run_parties(3, [&](int party) {
      try {
        for (;;) {
          rendezvous.wait(party);
          completed[party] += 1;
        }
      } catch (const tandem::Cancelled&) {
      }
    });
    canceller.join();
    REQUIRE(completed[0] == completed[1]);
    REQUIRE(completed[1] == completed[2]);
  }
}
