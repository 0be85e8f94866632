#include "backend/cores.h"

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "core/cgroup_limit.h"
#include "support/catch.h"
#include "support/temp_dir.h"

using namespace tandem;

using Cores = std::vector<int>;
using Shares = std::vector<Cores>;

namespace {

void put(const std::string& path, const std::string& text) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream(path) << text << '\n';
}

// How a process sees its control group: what it says in /proc, and the folder that has its files.
struct Group {
  const char* line;
  const char* folder;
};

}  // namespace

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

TEST_CASE("a control group's share of the processors counts as cores, a part of one as one") {
  const int allowed = static_cast<int>(allowed_cores().size());
  const bool second = GENERATE(true, false);  // version
  const Group group = second ? GENERATE(Group{"0::/", ""}, Group{"0::/a/b", "a/b"}, Group{"0::/a/b", "a"},
                                        Group{"1:cpu:/\n0::/docker/1", ""})
                             : GENERATE(Group{"3:cpu:/a", "cpu/a"}, Group{"4:cpu,cpuacct:/a", "cpu,cpuacct/a"},
                                        Group{"4:cpuacct,cpu:/a", "cpu/a"}, Group{"4:cpu,cpuacct:/docker/1", "cpu"},
                                        Group{"2:memory:/b\n4:cpu,cpuacct:/a/b\n0::/", "cpu,cpuacct/a"});
  struct Share {
    const char* quota;
    int cores;  // 0: as many as there are
  };
  const Share share = GENERATE(Share{"100000", 1}, Share{"1000", 1}, Share{"99999", 1}, Share{"100001", 2},
                               Share{"150000", 2}, Share{"200000", 2}, Share{"300000", 3}, Share{"100000000000000", 0},
                               Share{"none", 0}, Share{"nonsense", 0});
  const test::TempDir dir;
  const std::string root = dir.path(), folder = root + "/sys/fs/cgroup/" + group.folder + "/";
  const bool none = std::string(share.quota) == "none";
  put(root + "/proc/self/cgroup", group.line);
  if (second) {
    put(folder + "cpu.max", std::string(none ? "max" : share.quota) + " 100000");
  } else {
    put(folder + "cpu.cfs_quota_us", none ? "-1" : share.quota);
    put(folder + "cpu.cfs_period_us", "100000");
  }
  CAPTURE(group.line, group.folder, share.quota);
  CHECK(usable_cores(root) == (share.cores == 0 ? allowed : std::min(allowed, share.cores)));
}

TEST_CASE("the smallest share of a control group and those around it counts, and a machine without any has all cores") {
  const test::TempDir dir;
  const std::string root = dir.path();
  const int allowed = static_cast<int>(allowed_cores().size());
  CHECK(usable_cores(root) == allowed);
  put(root + "/proc/self/cgroup", "0::/a/b");
  CHECK(usable_cores(root) == allowed);
  put(root + "/sys/fs/cgroup/a/b/cpu.max", "800000 100000");
  put(root + "/sys/fs/cgroup/a/cpu.max", "50000 50000");
  CHECK(usable_cores(root) == 1);
  CHECK(cpu_limit(root) == 1.0);
}
