// Runs sessions in every way, and says what of the process has changed meanwhile. Prints nothing when nothing has.
#include <sys/stat.h>
#include <unistd.h>

#include <cfenv>
#include <clocale>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <thread>

#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include "tandem/session/session.h"

namespace {

using tandem::Accelerator;
using tandem::Session;
namespace fs = std::filesystem;

std::string text_of(const struct sigaction& action) {
  std::string text = std::to_string(reinterpret_cast<std::uintptr_t>(action.sa_handler)) + " flags " +
                     std::to_string(action.sa_flags) + " mask";
  for (int signal = 1; signal <= 64; ++signal)
    if (sigismember(&action.sa_mask, signal) == 1) text += " " + std::to_string(signal);
  return text;
}

std::string environment() {
  std::string text;
  for (char** variable = environ; variable && *variable; ++variable) text += std::string(*variable) + "\n";
  return text;
}

mode_t file_mask() {
  const mode_t mask = ::umask(0);
  ::umask(mask);
  return mask;
}

std::string blocked_signals() {
  struct sigaction action {};
  pthread_sigmask(SIG_SETMASK, nullptr, &action.sa_mask);
  return text_of(action);
}

using State = std::map<std::string, std::string>;

State state_of_process() {
  State state{
      {"the locale", std::setlocale(LC_ALL, nullptr)}, {"the environment", environment()},
      {"the working directory", fs::current_path()},   {"umask", std::to_string(file_mask())},
      {"the blocked signals", blocked_signals()},      {"the rounding mode", std::to_string(std::fegetround())}};
  for (int signal = 1; signal <= 64; ++signal) {
    struct sigaction action {};
    if (::sigaction(signal, nullptr, &action) == 0)  // two are the C library's own
      state["the action of signal " + std::to_string(signal)] = text_of(action);
  }
  return state;
}

void train(Accelerator& accelerator, int steps) {
  torch::nn::Linear net(16, 16);
  torch::optim::SGD sgd(net->parameters(), 0.01);
  auto [model, optimizer] = accelerator.prepare(net, sgd);
  for (int step = 0; step < steps && !accelerator.stop_requested(); ++step) {
    auto window = accelerator.accumulate(model);
    accelerator.backward(model(at::rand({8, 16})).square().mean());
    optimizer.step();
    optimizer.zero_grad();
  }
}

// Whether the session came to `state`, with what the host does on the way.
bool run(tandem::SessionState state, int steps, const std::function<void(Session&)>& host) {
  Session session;
  session.start({.cpu = 2}, [steps](Accelerator& accelerator) { train(accelerator, steps); });
  host(session);
  session.wait();
  return session.status().state == state;
}

bool fails() {
  Session session;
  session.start({.cpu = 2}, [](Accelerator& accelerator) {
    train(accelerator, 3);
    if (accelerator.is_last()) throw std::runtime_error("no such splat");
    accelerator.wait_for_everyone();
  });
  try {
    session.wait();
    return false;
  } catch (const tandem::RankError&) {
    return true;
  }
}

bool run_all(const std::string& directory) {
  using enum tandem::SessionState;
  constexpr int kForever = 1 << 30;
  const auto wait_for_step = [](const Session& session) {
    while (session.progress().step < 2) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  };
  const bool ends = run(ended, 20, [](Session&) {});
  const bool stops = run(ended, kForever, [&](Session& session) {
    wait_for_step(session);
    session.pause({.release_memory = true});
    session.snapshot().wait();
    session.request_stop();
  });
  const bool is_cancelled = run(cancelled, kForever, [&](Session& session) {
    wait_for_step(session);
    session.cancel();
  });
  const bool saves = run(ended, kForever, [&](Session& session) {
    wait_for_step(session);
    session.save_now(directory).get();
    session.request_stop();
  });
  return ends && stops && is_cancelled && saves && fails();
}

int check(const std::string& directory) {
  at::ones({1 << 20}).sum();  // what LibTorch does at first is its own
  const State before = state_of_process();
  if (!run_all(directory)) return std::fputs("a session has not come to the end that it should\n", stderr), 1;
  int changes = 0;
  for (const auto& [name, value] : state_of_process()) {
    if (before.contains(name) && before.at(name) == value) continue;
    std::fprintf(stderr, "%s has changed to %s\n", name.c_str(), value.c_str());
    changes += 1;
  }
  return changes ? 1 : 0;
}

}  // namespace

int main() {
  std::string parent = fs::temp_directory_path() / "tandem-quiet-XXXXXX";
  if (!::mkdtemp(parent.data())) return std::perror("mkdtemp"), 1;
  const int code = check(parent + "/state");
  fs::remove_all(parent);
  return code;
}
