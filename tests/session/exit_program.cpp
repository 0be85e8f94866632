// Ends while a session trains, in the way that its argument names.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <thread>

#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include "tandem/session/session.h"

namespace {

using tandem::Session;

void train(tandem::Accelerator& accelerator, bool exits) {
  torch::nn::Linear net(64, 64);
  torch::optim::SGD sgd(net->parameters(), 0.01);
  auto [model, optimizer] = accelerator.prepare(net, sgd);
  for (int step = 0;; ++step) {
    auto window = accelerator.accumulate(model);
    accelerator.backward(model(at::rand({8, 64})).square().mean());
    optimizer.step();
    optimizer.zero_grad();
    if (exits && step == 20 && accelerator.is_last()) std::exit(0);
  }
}

void start(Session& session, bool exits = false) {
  session.start({.cpu = 2}, [exits](tandem::Accelerator& accelerator) { train(accelerator, exits); });
  while (session.progress().step < 5) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

int by_return() {
  Session session;
  start(session);
  return 0;
}

int by_static() {
  static Session session;
  start(session);
  return 0;
}

int by_exit() {
  Session session;
  start(session);
  std::exit(0);
}

int by_exit_in_callback() {
  Session session({.on_event = [](const tandem::SessionEvent& event) {
    if (event.progress.step > 5) std::exit(0);
  }});
  start(session);
  session.wait();
  return 1;
}

int by_exit_on_rank() {
  Session session;
  start(session, true);
  session.wait();
  return 1;
}

int while_paused() {
  Session session;
  start(session);
  session.pause();
  while (session.progress().state != tandem::SessionState::paused) std::this_thread::yield();
  std::exit(0);
}

// The child has none of the session's threads, and ends all the same.
int with_fork() {
  Session session;
  start(session);
  const pid_t child = ::fork();
  if (child == 0) std::exit(0);
  int status = -1;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const std::map<std::string, int (*)()> ways{{"return", by_return},
                                              {"static", by_static},
                                              {"exit", by_exit},
                                              {"exit-in-callback", by_exit_in_callback},
                                              {"exit-on-rank", by_exit_on_rank},
                                              {"paused", while_paused},
                                              {"fork", with_fork}};
  const auto way = ways.find(argc == 2 ? argv[1] : "");
  if (way == ways.end()) return std::puts("name a way to end"), 2;
  return way->second();
}
