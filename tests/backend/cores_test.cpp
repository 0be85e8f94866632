#include "backend/cores.h"

#include "support/catch.h"

using namespace tandem;

using Cores = std::vector<int>;
using Shares = std::vector<Cores>;

TEST_CASE("the kernel's lists of cores are read, and nothing else") {
  CHECK(parse_core_list("0") == Cores{0});
  CHECK(parse_core_list("0-3,8,10-11") == Cores{0, 1, 2, 3, 8, 10, 11});
  for (const char* text : {"", "a", "3-1", "1,a", "1-", "-1", "1-2x", "5000", "1 2"}) {
    CAPTURE(text);
    CHECK(parse_core_list(text).empty());
  }
  CHECK(cores_of_pci_device("no such device").empty());
}

TEST_CASE("ranks get the cores near their device, and divide them when pinned") {
  const Cores all{0, 1, 2, 3, 4, 5, 6, 7};
  const Cores left{0, 1, 2, 3}, right{4, 5, 6, 7};
  CHECK(core_shares(all, {{}, {}}, false) == Shares{{}, {}});
  CHECK(core_shares(all, {{}, {}}, true) == Shares{{0, 2, 4, 6}, {1, 3, 5, 7}});
  CHECK(core_shares(all, {left, right}, false) == Shares{left, right});
  CHECK(core_shares(all, {left, left, right}, true) == Shares{{0, 2}, {1, 3}, right});
  CHECK(core_shares({0, 1}, {{}, {}, {}}, true) == Shares{{0}, {1}, {0}});
  // A process that may use none of the near ones goes where it may.
  CHECK(core_shares(left, {right}, false) == Shares{{}});
  CHECK(core_shares({2, 3, 4}, {left, right}, false) == Shares{{2, 3}, {4}});
  CHECK(core_shares({}, {left}, true) == Shares{{}});
}

TEST_CASE("a thread that was moved is put back") {
  const Cores before = allowed_cores();
  REQUIRE(!before.empty());
  {
    const KeepCores keep;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(before.back(), &one);
    REQUIRE(sched_setaffinity(0, sizeof one, &one) == 0);
    CHECK(allowed_cores() == Cores{before.back()});
  }
  CHECK(allowed_cores() == before);
}
