// Who this process is among several, out of launchers' variables.
#include "tandem/comm/nodes.h"

#include <map>

#include "support/catch.h"
#include "support/error_of.h"
#include "tandem/core/error.h"

using namespace tandem;
using test::error_of;

namespace {

using Environment = std::map<std::string, std::string>;

FoundNodes found_in(const Environment& environment) {
  return find_nodes([&](const std::string& name) -> std::optional<std::string> {
    const auto found = environment.find(name);
    return found == environment.end() ? std::nullopt : std::optional(found->second);
  });
}

// What the launchers set for the second of two processes.
const Environment kTorchrun{{"TORCHELASTIC_RUN_ID", "none"},
                            {"TORCHELASTIC_RESTART_COUNT", "0"},
                            {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                            {"LOCAL_RANK", "0"},
                            {"RANK", "1"},
                            {"WORLD_SIZE", "2"},
                            {"MASTER_ADDR", "head"},
                            {"MASTER_PORT", "29400"}};
const Environment kMpirun{{"OMPI_COMM_WORLD_RANK", "1"},
                          {"OMPI_COMM_WORLD_SIZE", "2"},
                          {"OMPI_COMM_WORLD_LOCAL_SIZE", "1"},
                          {"PMIX_NAMESPACE", "2785280001"},
                          {"MASTER_ADDR", "head"}};
const Environment kSrun{{"SLURM_PROCID", "1"},         {"SLURM_STEP_NUM_TASKS", "2"},
                        {"SLURM_STEP_NUM_NODES", "2"}, {"SLURM_STEP_NODELIST", "n[1-2]"},
                        {"SLURM_JOB_ID", "4711"},      {"SLURM_STEP_ID", "3"}};
const Environment kByHand{{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "head"}, {"MASTER_PORT", "29400"}};

struct Kind {
  const char* name;
  Environment environment;
  const char *node, *nodes;
};
const std::vector<Kind> kKinds{{"torchrun", kTorchrun, "RANK", "WORLD_SIZE"},
                               {"mpirun", kMpirun, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"},
                               {"srun", kSrun, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"},
                               {"by hand", kByHand, "RANK", "WORLD_SIZE"}};

Environment with(Environment environment, const Environment& more) {
  for (const auto& [name, value] : more) environment[name] = value;
  return environment;
}

}  // namespace

TEST_CASE("each launcher's variables tell which node this is and where the store is") {
  for (const Kind& kind : kKinds) {
    CAPTURE(kind.name);
    const FoundNodes found = found_in(kind.environment);
    REQUIRE(found.nodes);
    CHECK(found.nodes->node == 1);
    CHECK(found.nodes->nodes == 2);
    CHECK(found.nodes->started_by == kind.name);
    CHECK(found.nodes->head == (kind.name == std::string("srun") ? "n1" : "head"));
    CHECK(found.nodes->launcher_has_store == (kind.name == std::string("torchrun")));
    CHECK_THAT(found.why, ContainsSubstring(kind.node) && ContainsSubstring(kind.name));
  }
  CHECK(found_in(kTorchrun).nodes->port == 29400);
  CHECK(found_in(kSrun).nodes->hosts == std::vector<std::string>{"n1", "n2"});
}

TEST_CASE("a launcher counts only when all of its variables are there") {
  const std::vector<std::pair<Environment, std::vector<std::string>>> needed{
      {kByHand, {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}},
      {kTorchrun, {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}},
      {kMpirun, {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"}},
      {kSrun, {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_JOB_ID"}}};
  for (const auto& [environment, names] : needed)
    for (const std::string& name : names) {
      CAPTURE(name);
      Environment rest = environment;
      rest.erase(name);
      CHECK(!found_in(rest).nodes);
      rest[name] = "";  // as shells leave it
      CHECK(!found_in(rest).nodes);
    }
  CHECK(!found_in({}).nodes);
  CHECK(found_in({}).why == "no launcher's variables are set");
  CHECK(found_in({{"RANK", "1"}}).why == "RANK alone is not what a launcher sets");
  CHECK(found_in({{"RANK", "1"}, {"WORLD_SIZE", "2"}}).why == "RANK, WORLD_SIZE alone are not what a launcher sets");
}

TEST_CASE("one process of a launcher's is a plain run") {
  for (const Kind& kind : kKinds) {
    CAPTURE(kind.name);
    const FoundNodes found = found_in(
        with(kind.environment,
             {{kind.node, "0"}, {kind.nodes, "1"}, {"SLURM_STEP_NODELIST", "n1"}, {"SLURM_STEP_NUM_NODES", "1"}}));
    CHECK(!found.nodes);
    CHECK_THAT(found.why, ContainsSubstring(kind.name));
  }
}

TEST_CASE("numbers that are none or contradict each other are errors that name the variable") {
  for (const Kind& kind : kKinds)
    for (const char* name : {kind.node, kind.nodes})
      for (const char* value :
           {"-1", "x", "1x", " 1", "1.0", "0x1", "99999", "18446744073709551617", "2147483648", "+1"}) {
        CAPTURE(kind.name, name, value);
        CHECK_THAT(error_of<ConfigError>([&] {
                     found_in(with(kind.environment, {{name, value}}));
                   }),
                   ContainsSubstring(name) && ContainsSubstring(value));
      }
  for (const Kind& kind : kKinds) {
    CHECK_THAT(error_of<ConfigError>([&] {
                 found_in(with(kind.environment, {{kind.node, "2"}}));
               }),
               ContainsSubstring(kind.node) && ContainsSubstring(kind.nodes));
    CHECK_THAT(error_of<ConfigError>([&] {
                 found_in(with(kind.environment, {{kind.nodes, "0"}}));
               }),
               ContainsSubstring(kind.nodes));
    for (const char* port : {"0", "65536", "http", "-1"})
      CHECK_THAT(error_of<ConfigError>([&] {
                   found_in(with(kind.environment, {{"MASTER_PORT", port}}));
                 }),
                 ContainsSubstring("MASTER_PORT"));
    for (const char* host : {"a b", "http://head", "a,b", "a\n", "[::1]"})
      CHECK_THAT(error_of<ConfigError>([&] {
                   found_in(with(kind.environment, {{"MASTER_ADDR", host}}));
                 }),
                 ContainsSubstring("MASTER_ADDR"));
  }
  CHECK_THAT(error_of<ConfigError>([] {
               found_in(with(kTorchrun, {{"TORCHELASTIC_USE_AGENT_STORE", "yes"}}));
             }),
             ContainsSubstring("TORCHELASTIC_USE_AGENT_STORE"));
}

TEST_CASE("two launchers that say different things are refused, and what runs inside of another's goes first") {
  for (const Environment& launcher : {kMpirun, kSrun}) {
    CHECK(found_in(with(launcher, {{"RANK", "1"}, {"WORLD_SIZE", "2"}})).nodes);
    CHECK(found_in(with(launcher, {{"RANK", "0"}})).nodes);  // left over, and not complete
    CHECK_THAT(error_of<ConfigError>([&] {
                 found_in(with(launcher, {{"RANK", "0"}, {"WORLD_SIZE", "2"}}));
               }),
               ContainsSubstring("unset RANK and WORLD_SIZE"));
  }
  CHECK(found_in(with(kSrun, kTorchrun)).nodes->started_by == "torchrun");
  CHECK(found_in(with(kSrun, kMpirun)).nodes->started_by == "mpirun");
}

TEST_CASE("mpirun has to tell where the first process is, unless all are on this host") {
  Environment environment = kMpirun;
  environment.erase("MASTER_ADDR");
  CHECK_THAT(error_of<ConfigError>([&] { found_in(environment); }), ContainsSubstring("-x MASTER_ADDR=HOST"));
  environment["OMPI_COMM_WORLD_LOCAL_SIZE"] = "2";
  CHECK(found_in(environment).nodes->head == "127.0.0.1");
}

TEST_CASE("ports of jobs and steps differ, and lie below those that systems give away") {
  std::vector<int> ports;
  for (const char* job : {"1", "2", "4294967295"})
    for (const char* step : {"0", "1", "4294967290"})
      ports.push_back(found_in(with(kSrun, {{"SLURM_JOB_ID", job}, {"SLURM_STEP_ID", step}})).nodes->port);
  ports.push_back(found_in(kMpirun).nodes->port);
  ports.push_back(found_in(with(kMpirun, {{"PMIX_NAMESPACE", "2785280002"}})).nodes->port);
  for (const int port : ports) CHECK((port >= 20'000 && port < 32'000));
  std::sort(ports.begin(), ports.end());
  CHECK(std::adjacent_find(ports.begin(), ports.end()) == ports.end());
  CHECK(found_in(with(kSrun, {{"MASTER_PORT", "1234"}, {"MASTER_ADDR", "other"}})).nodes->port == 1234);
  CHECK(found_in(with(kSrun, {{"MASTER_PORT", "1234"}, {"MASTER_ADDR", "other"}})).nodes->head == "other");
}

TEST_CASE("a step of Slurm's whose hosts do not fit is refused") {
  CHECK_THAT(error_of<ConfigError>([] {
               found_in(with(kSrun, {{"SLURM_STEP_NUM_NODES", "3"}}));
             }),
             ContainsSubstring("SLURM_STEP_NUM_NODES"));
  CHECK_THAT(error_of<ConfigError>([] {
               found_in(with(kSrun, {{"SLURM_DISTRIBUTION", "arbitrary"}}));
             }),
             ContainsSubstring("SLURM_DISTRIBUTION"));
  CHECK(found_in(with(kSrun, {{"SLURM_DISTRIBUTION", "arbitrary"}, {"MASTER_ADDR", "n2"}})).nodes->head == "n2");
  // Two tasks on one host: nobody knows which nodes are where.
  CHECK(found_in(with(kSrun, {{"SLURM_STEP_NODELIST", "n1"}, {"SLURM_STEP_NUM_NODES", "1"}})).nodes->hosts.empty());
}

TEST_CASE("Slurm's lists of hosts are read as Slurm writes them") {
  using Hosts = std::vector<std::string>;
  CHECK(hosts_of("a") == Hosts{"a"});
  CHECK(hosts_of("a,b.example.org,c-1_x") == Hosts{"a", "b.example.org", "c-1_x"});
  CHECK(hosts_of("n[1-2,5],m3") == Hosts{"n1", "n2", "n5", "m3"});
  CHECK(hosts_of("n[001-003]") == Hosts{"n001", "n002", "n003"});
  CHECK(hosts_of("n[8-11]") == Hosts{"n8", "n9", "n10", "n11"});
  CHECK(hosts_of("n[08-11,100]") == Hosts{"n08", "n09", "n10", "n11", "n100"});
  CHECK(hosts_of("n[1-2]-ib,x[7]") == Hosts{"n1-ib", "n2-ib", "x7"});
  CHECK(hosts_of("r[1-2]n[01-02]") == Hosts{"r1n01", "r1n02", "r2n01", "r2n02"});
  CHECK(hosts_of("[1-2]") == Hosts{"1", "2"});
  CHECK(hosts_of("n[0-65535]").size() == 65'536);
}

TEST_CASE("what is no list of hosts is refused, whatever it is") {
  for (const char* list : {"",
                           ",",
                           "a,",
                           ",a",
                           "a,,b",
                           "n[",
                           "n[]",
                           "n[1",
                           "n[1-",
                           "n[1-]",
                           "n[-1]",
                           "n[1,]",
                           "n[,1]",
                           "n]",
                           "n[2-1]",
                           "n[a-b]",
                           "n[1-2",
                           "n[1[2]]",
                           "n 1",
                           "n\n1",
                           "a;b",
                           "n[1-2]]",
                           "a[1]b[",
                           "[0-65536]",
                           "n[0-999999999999]",
                           "n[0-99999999999999999999]",
                           "r[0-999]n[0-999]",
                           "a[0-9]b[0-9]c[0-9]d[0-9]e[0-9]",
                           "n[0-40000],m[0-40000]",
                           "../x",
                           "a\x80"}) {
    CAPTURE(list);
    CHECK_THAT(error_of<ConfigError>([&] { hosts_of(list); }), ContainsSubstring("is no list of hosts"));
  }
  CHECK_THAT(error_of<ConfigError>([] { hosts_of(std::string(300, 'a')); }), ContainsSubstring("too long"));
  CHECK_THAT(error_of<ConfigError>([] { hosts_of(std::string(100'000, '[')); }), ContainsSubstring("is missing"));
}

TEST_CASE("a place among nodes that is none is refused") {
  const Nodes good{.node = 1, .nodes = 2, .head = "head"};
  CHECK_NOTHROW(check(good));
  CHECK_NOTHROW(check(Nodes{}));
  const auto refused = [&](auto change) {
    Nodes nodes = good;
    change(nodes);
    return !error_of<ConfigError>([&] { check(nodes); }).empty();
  };
  CHECK(refused([](Nodes& n) { n.node = -1; }));
  CHECK(refused([](Nodes& n) { n.node = 2; }));
  CHECK(refused([](Nodes& n) { n.nodes = 0; }));
  CHECK(refused([](Nodes& n) { n.nodes = kMostNodes + 1; }));
  CHECK(refused([](Nodes& n) { n.head = ""; }));
  CHECK(refused([](Nodes& n) { n.head = "a b"; }));
  CHECK(refused([](Nodes& n) { n.port = 0; }));
  CHECK(refused([](Nodes& n) { n.port = 65'536; }));
  CHECK(refused([](Nodes& n) { n.join_timeout = std::chrono::milliseconds(0); }));
  CHECK(refused([](Nodes& n) { n.node_timeout = std::chrono::milliseconds(-1); }));
  CHECK(refused([](Nodes& n) { n.hosts = {"a"}; }));
}
