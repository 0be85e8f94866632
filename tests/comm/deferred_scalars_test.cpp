// Numbers that are read when they have arrived: on the CPU at once, on devices without anybody waiting for them.
#include <stdexcept>
#include <vector>

#include "support/fake_machine.h"
#include "support/host_counts.h"
#include "tandem/comm/deferred_scalars.h"

using namespace tandem;
using namespace tandem::test;
using comm::DeferredScalars;

namespace {

using Numbers = std::vector<std::vector<double>>;  // of each rank

Numbers numbers_of(const DeferredScalars::Arrived& arrived) {
  Numbers numbers;
  for (std::size_t rank = 0; rank < arrived.ranks(); ++rank) {
    numbers.emplace_back();
    for (std::size_t i = 0; i < arrived.count(); ++i) numbers.back().push_back(arrived.of(rank, i));
  }
  return numbers;
}

// What ranks give in a step: a number of the host's, and one that the device has.
Numbers numbers_of_step(int step, int ranks) {
  Numbers numbers;
  for (int rank = 0; rank < ranks; ++rank) numbers.push_back({step + 0.5, 10.0 * step + rank});
  return numbers;
}

constexpr int kSteps = 40;

// Adds some numbers in each step; what they lie in is written to again at once.
void deliver_steps(Accelerator& a, DeferredScalars& scalars, std::vector<Numbers>& delivered) {
  const at::Tensor number = at::empty({1}, a.device());
  for (int step = 0; step < kSteps; ++step) {
    number.fill_(10.0 * step + a.rank());
    scalars.add_of_all({step + 0.5, number}, [&](const auto& arrived) { delivered.push_back(numbers_of(arrived)); });
    number.fill_(-1);
    a.wait_for_everyone();  // as a training does that reduces gradients
    scalars.deliver();
  }
  a.wait_for_everyone();
}

}  // namespace

TEST_CASE("numbers of CPU ranks are delivered at once, and sums over ranks have the bits of reduce") {
  const int ranks = GENERATE(1, 3);
  const auto alike = on_ranks<bool>(ranks, [ranks](Accelerator& a) {
    DeferredScalars scalars(a.communicator(), a.device());
    bool alike = true;
    for (int step = 0; step < 20; ++step) {
      const at::Tensor loss = at::rand({});  // each rank's own
      const double sum = a.reduce(loss.item<double>());
      int calls = 0;
      scalars.add_of_all({loss, 1.0}, [&](const DeferredScalars::Arrived& arrived) {
        calls += 1;
        alike = alike && arrived.sum(0) == sum && arrived.sum(1) == ranks && arrived.part(1, 1).sum(0) == ranks;
      });
      alike = alike && calls == 1 && scalars.pending() == 0;
    }
    return alike;
  });
  for (const bool one : alike) CHECK(one);
}

TEST_CASE("devices' numbers are delivered in order as they were when they were added, and no host waits for them") {
  fake::reset();
  const Machine machine;
  const auto [devices, transport] = GENERATE(table<std::vector<int>, Transport>({{{0}, Transport::automatic},
                                                                                 {{0, 1, 2}, Transport::nccl},
                                                                                 {{0, 1}, Transport::peer_memory},
                                                                                 {{3, 3}, Transport::automatic}}));
  const int ranks = static_cast<int>(devices.size());
  std::vector<Numbers> delivered;
  std::size_t before_the_end = 0;
  std::map<std::string, int> waits;
  launch(machine.config(devices, transport), [&](Accelerator& a) {
    DeferredScalars scalars(a.communicator(), a.device());
    std::vector<Numbers> warm_up, mine;
    deliver_steps(a, scalars, warm_up);  // makes what is kept
    scalars.deliver_all();
    a.wait_for_everyone();
    if (a.is_main()) fake::count_from_now();
    a.wait_for_everyone();
    deliver_steps(a, scalars, mine);
    if (a.is_main()) waits = fake::host_waits();
    a.wait_for_everyone();
    const std::size_t by_now = mine.size();
    scalars.deliver_all();
    if (a.is_main()) before_the_end = by_now;
    if (a.is_main()) delivered = std::move(mine);
  });
  CHECK(waits == std::map<std::string, int>{});
  CHECK(before_the_end > kSteps / 4);
  REQUIRE(delivered.size() == kSteps);
  for (int step = 0; step < kSteps; ++step)
    CHECK(delivered[static_cast<std::size_t>(step)] == numbers_of_step(step, ranks));
  machine.check_clean();
}

TEST_CASE("all that is pending on a device is delivered when it is asked for") {
  fake::reset();
  const Machine machine;
  std::vector<Numbers> delivered;
  launch(machine.config({0, 1}), [&](Accelerator& a) {
    DeferredScalars scalars(a.communicator(), a.device());
    std::vector<Numbers> mine;
    for (int step = 0; step < 5; ++step)
      scalars.add_of_all({step + 0.5, at::full({}, 10.0 * step + a.rank(), a.device())},
                         [&](const auto& arrived) { mine.push_back(numbers_of(arrived)); });
    scalars.deliver_all();
    if (a.is_main()) delivered = mine;
  });
  REQUIRE(delivered.size() == 5);
  for (int step = 0; step < 5; ++step) CHECK(delivered[static_cast<std::size_t>(step)] == numbers_of_step(step, 2));
  machine.check_clean();
}

TEST_CASE("a rank that fails delivers what all ranks have given, without waiting for more of them") {
  fake::reset();
  const Machine machine;
  std::vector<Numbers> delivered;
  const std::string error = machine.error_of(machine.config({0, 1}), [&](Accelerator& a) {
    DeferredScalars scalars(a.communicator(), a.device());
    const auto add = [&](int step) {
      scalars.add_of_all({step + 0.5, at::full({}, 10.0 * step + a.rank(), a.device())}, [&](const auto& arrived) {
        if (a.is_main()) delivered.push_back(numbers_of(arrived));
      });
    };
    for (int step = 0; step < 5; ++step) add(step);
    a.wait_for_everyone();
    if (!a.is_main()) return a.wait_for_everyone();
    add(5);  // the other rank never does
    scalars.deliver_given();
    throw std::runtime_error("disk on fire");
  });
  CHECK_THAT(error, Catch::Matchers::ContainsSubstring("disk on fire"));
  REQUIRE(delivered.size() == 5);
  for (int step = 0; step < 5; ++step) CHECK(delivered[static_cast<std::size_t>(step)] == numbers_of_step(step, 2));
}

TEST_CASE("numbers of one rank keep their order between the host's and the device's") {
  fake::reset();
  const Machine machine;
  std::vector<double> delivered, at_once;
  launch(machine.config({0}), [&](Accelerator& a) {
    DeferredScalars scalars;
    const auto take = [&](const auto& arrived) { delivered.push_back(arrived.of(0, 0)); };
    scalars.add({1.0}, take);
    at_once = delivered;
    scalars.add({at::full({}, 2, a.device())}, take);
    scalars.add({3.0}, take);
    scalars.add({at::full({1}, true, at::device(a.device()).dtype(at::kBool))}, take);
    scalars.deliver_all();
  });
  CHECK(at_once == std::vector<double>{1});
  CHECK(delivered == std::vector<double>{1, 2, 3, 1});
  machine.check_clean();
}
