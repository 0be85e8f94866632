// session: how long after a request a session has done it, and what a session costs a training that is looked at 60
// times a second. Goals: pause and stop within a step, cancel within 100 ms, cost below 0.1 %.
//   session [GPU...]     one rank on each GPU named, or two on the CPU
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <thread>

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include "measure/statistics.h"
#include "tandem/tandem.h"

namespace {

using Clock = std::chrono::steady_clock;
using tandem::Accelerator;
using tandem::Session;
using tandem::SessionState;

tandem::LaunchConfig config{.cpu = 2};

int ranks() { return config.cpu ? *config.cpu : static_cast<int>(config.devices.size()); }

struct Images : torch::data::datasets::BatchDataset<Images, at::Tensor> {
  at::Tensor all = at::rand({4096, 784});
  at::Tensor get_batch(c10::ArrayRef<std::size_t> indices) override {
    return all.narrow(0, 0, static_cast<std::int64_t>(indices.size()));
  }
  std::optional<std::size_t> size() const override { return 4096; }
};

std::atomic<Clock::rep> last_loop_end{0};  // of any rank

// Steps that each rank has begun.
constexpr std::size_t kMostRanks = 64;
std::array<std::atomic<std::int64_t>, kMostRanks> begun;

std::array<std::int64_t, kMostRanks> steps_begun() {
  std::array<std::int64_t, kMostRanks> now;
  std::copy(begun.begin(), begun.end(), now.begin());
  return now;
}

// The most that a rank has begun since `before`.
std::int64_t most_begun_since(const std::array<std::int64_t, kMostRanks>& before) {
  const auto now = steps_begun();
  std::int64_t most = 0;
  for (std::size_t rank = 0; rank < kMostRanks; ++rank) most = std::max(most, now[rank] - before[rank]);
  return most;
}

// Trains a network of 0.8 million parameters for `steps` steps, or until it is stopped.
void train(Accelerator& accelerator, std::int64_t steps, std::int64_t batch_size = 64) {
  torch::nn::Sequential net(torch::nn::Linear(784, 640), torch::nn::ReLU(), torch::nn::Linear(640, 512),
                            torch::nn::ReLU(), torch::nn::Linear(512, 10));
  torch::optim::SGD sgd(net->parameters(), 0.01);
  auto [model, optimizer, loader] =
      accelerator.prepare(net, sgd, tandem::data::DataLoader(Images(), {.batch_size = batch_size}));
  for (std::int64_t step = 0; step < steps && !accelerator.stop_requested();)
    for (auto& images : loader) {
      if (step++ == steps) break;
      auto window = accelerator.accumulate(model);
      begun.at(static_cast<std::size_t>(accelerator.rank())) += 1;
      accelerator.backward(model(images).square().mean());
      optimizer.step();
      optimizer.zero_grad();
    }
  Clock::rep before = last_loop_end;
  const Clock::rep now = Clock::now().time_since_epoch().count();
  while (before < now && !last_loop_end.compare_exchange_weak(before, now)) {
  }
}

// The same without a network: what is left is Tandem's own work.
void count_steps(Accelerator& accelerator, std::int64_t steps) {
  auto loader = accelerator.prepare(tandem::data::DataLoader(Images(), {.batch_size = 1}));
  for (std::int64_t step = 0; step < steps;)
    for ([[maybe_unused]] auto& image : loader) {
      if (step++ == steps) break;
      auto window = accelerator.accumulate();
    }
}

double seconds_of(const std::function<void()>& work) {
  const auto start = Clock::now();
  work();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void wait_for_step(const Session& session) {
  while (session.progress().step == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

// Milliseconds from `request` until the moment that `wait` returns, and the steps that ranks have begun meanwhile.
void show_latency(const char* name, double step_ms, const std::function<void(Session&)>& request,
                  const std::function<Clock::time_point(Session&)>& wait) {
  constexpr int kRuns = 30;
  std::vector<double> times;
  std::int64_t most_begun = 0;
  for (int run = 0; run < kRuns; ++run) {
    Session session;
    last_loop_end = 0;
    session.start(config, [](Accelerator& accelerator) { train(accelerator, 1 << 30); });
    wait_for_step(session);
    std::this_thread::sleep_for(std::chrono::microseconds(1'000 + 379 * run));
    const auto begun_before = steps_begun();
    const auto start = Clock::now();
    request(session);
    times.push_back(std::chrono::duration<double, std::milli>(wait(session) - start).count());
    most_begun = std::max(most_begun, most_begun_since(begun_before));
  }
  const auto spread = measure::spread_of(times);
  std::printf("%-33s %9.2f ms %9.2f ms %7.1f steps %9lld\n", name, spread.median, spread.max, spread.median / step_ms,
              static_cast<long long>(most_begun));
}

// Often enough, and so seldom that ranks have the cores.
void look_until(const std::function<bool()>& holds) {
  while (!holds()) std::this_thread::sleep_for(std::chrono::microseconds(100));
}

Clock::time_point when_paused(Session& session) {
  look_until([&] { return session.progress().state == SessionState::paused; });
  return Clock::now();
}

Clock::time_point when_ended(Session& session) {
  session.wait();
  return Clock::now();
}

// When all ranks have left their loops, and the body can do what comes after training.
Clock::time_point when_stopped(Session& session) {
  session.wait();
  return Clock::time_point(Clock::duration(last_loop_end));
}

Clock::time_point when_stepped(Session& session) {
  look_until([&, step = session.progress().step] { return session.progress().step > step; });
  return Clock::now();
}

Clock::time_point at_once(Session&) { return Clock::now(); }

// As a desktop program does.
void run_watched(const std::function<void(Accelerator&)>& body) {
  Session session({.on_event = [](const tandem::SessionEvent&) {}});
  session.start(config, body);
  while (!session.wait_for(std::chrono::microseconds(16'667))) session.progress();
}

// Seconds of `steps` steps in a launch and in a session that is looked at, in turn; medians.
std::pair<double, double> compare(std::int64_t steps, const std::function<void(Accelerator&, std::int64_t)>& body) {
  constexpr int kPairs = 9;
  std::vector<double> launched, watched;
  const auto run = [&](Accelerator& accelerator) { body(accelerator, steps); };
  for (int pair = 0; pair < kPairs; ++pair) {
    launched.push_back(seconds_of([&] { tandem::launch(config, run); }));
    watched.push_back(seconds_of([&] { run_watched(run); }));
  }
  return {measure::spread_of(launched).median, measure::spread_of(watched).median};
}

}  // namespace

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) config.devices.push_back(std::stoi(argv[i]));
  if (argc > 1) config.cpu.reset();
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  constexpr std::int64_t kSteps = 400;
  const std::int64_t empty_steps = config.cpu ? 100'000 : 2'000;  // a step takes a GPU's rank longer
  const auto training = [](Accelerator& accelerator, std::int64_t steps) { train(accelerator, steps); };
  const auto [launched, watched] = compare(kSteps, training);
  const double step_ms = 1e3 * launched / kSteps;
  std::printf("a step of %d ranks: %.2f ms in a launch; in a session that is looked at: %+.2f %%\n", ranks(), step_ms,
              100 * (watched / launched - 1));
  const auto [empty, empty_watched] = compare(empty_steps, count_steps);
  const double cost_ns = 1e9 * (empty_watched - empty) / static_cast<double>(empty_steps);
  std::printf("a session's own work, measured without a network: %.0f ns a step, %.4f %% of that step\n\n", cost_ns,
              cost_ns / step_ms / 1e6 * 100);

  std::printf("%-33s %12s %12s %13s %9s\n", "from the call until", "median", "max", "median", "begun");
  const auto pause = [](Session& s) {
    s.pause();
    when_paused(s);
  };
  const auto resume = [&](Session& s) {
    pause(s);
    s.resume();
  };
  const auto cancel_paused = [&](Session& s) {
    pause(s);
    s.cancel();
  };
  const std::string directory = (std::filesystem::temp_directory_path() / "tandem-session-benchmark").string();
  const auto save = [&](Session& s) { s.save_now(directory).get(); };
  const auto stop = [](Session& s) { s.request_stop(); };
  show_latency(
      "pause: all ranks stand", step_ms, [](Session& s) { s.pause(); }, when_paused);
  show_latency("pause and resume: a step is done", step_ms, resume, when_stepped);
  show_latency("request_stop: loops have ended", step_ms, stop, when_stopped);
  show_latency("request_stop: it has ended", step_ms, stop, when_ended);
  show_latency(
      "cancel: it has ended", step_ms, [](Session& s) { s.cancel(); }, when_ended);
  show_latency("cancel while paused: it has ended", step_ms, cancel_paused, when_ended);
  show_latency(
      "snapshot: it is there", step_ms, [](Session& s) { s.snapshot().get(); }, at_once);
  show_latency("save_now: it is on the disk", step_ms, save, at_once);
  std::filesystem::remove_all(directory);
}
