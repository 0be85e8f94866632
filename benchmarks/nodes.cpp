// nodes: two processes of one CPU rank each, over loopback, and LibTorch's Gloo between the same two processes.
//   joining    from the start of the second process to both in the training, in seconds. Goal: at most 0.5
//   meeting    of the nodes with nothing to move, in ms. Goal: at most 0.2
//   all-reduce by Tandem (in the order of ranks) and by Gloo, in turn, in ms. Goal: at most 1.2 x at 25 MiB
#define USE_C10D_GLOO  // LibTorch has it, and its header wants to be told

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "comm/nodes/sockets.h"
#include "measure/statistics.h"
#include "tandem/tandem.h"

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRuns = 31, kMeetings = 2000;

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

void show(const char* name, const std::vector<double>& values, const char* unit) {
  const auto spread = measure::spread_of(values);
  std::printf("%-22s %8.3f %s (%.3f to %.3f)\n", name, spread.median, unit, spread.min, spread.max);
  std::fflush(stdout);
}

c10::intrusive_ptr<c10d::ProcessGroupGloo> connect_gloo(int node, int port) {
  c10d::TCPStoreOptions store;
  store.port = static_cast<std::uint16_t>(port);
  store.isServer = node == 0;
  store.numWorkers = 2;
  auto options = c10d::ProcessGroupGloo::Options::create(std::chrono::seconds(60));
  options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1"));
  return c10::make_intrusive<c10d::ProcessGroupGloo>(c10::make_intrusive<c10d::TCPStore>("127.0.0.1", store), node, 2,
                                                     options);
}

template <class Work>
double timed(tandem::Accelerator& accelerator, const Work& work) {
  accelerator.wait_for_everyone();
  const auto start = Clock::now();
  work();
  return ms_since(start);
}

// In turn.
void compare_all_reduce(tandem::Accelerator& accelerator, c10d::ProcessGroupGloo& gloo, std::int64_t kib) {
  const int warm_ups = 2, runs = kib > 4096 ? kRuns : 10 * kRuns;
  std::vector<at::Tensor> mine{at::ones({kib * 256})}, gloos{at::ones({kib * 256})};
  std::vector<double> ours, theirs, ratios;
  for (int run = 0; run < runs + warm_ups; ++run) {
    const double our_time =
        timed(accelerator, [&] { accelerator.communicator().all_reduce(mine, tandem::comm::ReduceOp::mean); });
    const double their_time = timed(accelerator, [&] { gloo.allreduce(gloos)->wait(); });
    if (run < warm_ups) continue;  // the first ones also allocate
    ours.push_back(our_time);
    theirs.push_back(their_time);
    ratios.push_back(our_time / their_time);
  }
  if (!accelerator.is_main()) return;
  std::printf("%lld KiB\n", static_cast<long long>(kib));
  show("  by Tandem", ours, "ms");
  show("  by Gloo", theirs, "ms");
  show("  ratio", ratios, "x");
}

void measure_all(tandem::Accelerator& accelerator, int gloo_port) {
  const bool shows = accelerator.is_main();
  std::vector<double> meetings;
  for (int run = 0; run < kRuns; ++run)
    meetings.push_back(timed(accelerator,
                             [&] {
                               for (int i = 0; i < kMeetings / kRuns; ++i) accelerator.wait_for_everyone();
                             }) /
                       (kMeetings / kRuns));
  if (shows) show("meeting", meetings, "ms");

  const auto gloo = connect_gloo(accelerator.rank(), gloo_port);
  for (const std::int64_t kib : {64, 1024, 25 * 1024}) compare_all_reduce(accelerator, *gloo, kib);
}

tandem::LaunchConfig config_of(int node, int port) {
  tandem::LaunchConfig config{.cpu = 1};
  config.nodes = tandem::Nodes{.node = node, .nodes = 2, .head = "127.0.0.1", .port = port};
  return config;
}

pid_t start_second(const char* program, int port, int gloo_port) {
  std::string arguments[] = {program, std::to_string(port), std::to_string(gloo_port)};
  char* argv[] = {arguments[0].data(), arguments[1].data(), arguments[2].data(), nullptr};
  pid_t child = 0;
  if (posix_spawn(&child, "/proc/self/exe", nullptr, nullptr, argv, environ) != 0) std::abort();
  return child;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 3) {
    const int gloo_port = std::atoi(argv[2]);
    tandem::launch(config_of(1, std::atoi(argv[1])), [&](tandem::Accelerator& one) { measure_all(one, gloo_port); });
    return 0;
  }
  const int port = 20'000 + getpid() % 20'000, gloo_port = port + 1;
  const auto start = Clock::now();
  const pid_t second = start_second(argv[0], port, gloo_port);
  tandem::launch(config_of(0, port), [&](tandem::Accelerator& accelerator) {
    show("joining", {ms_since(start) / 1e3}, "s");
    measure_all(accelerator, gloo_port);
  });
  int status = 0;
  waitpid(second, &status, 0);
  return status;
}
