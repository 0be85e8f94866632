// A small training for the tests of sessions, and what they wait for.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include "support/ranks.h"
#include "tandem/session/session.h"

namespace tandem::test {

using namespace std::chrono_literals;

struct Points : torch::data::datasets::Dataset<Points> {
  std::size_t length;
  std::chrono::microseconds slowness;
  explicit Points(std::size_t length = 24, std::chrono::microseconds slowness = 0us)
      : length(length), slowness(slowness) {}
  torch::data::Example<> get(std::size_t i) override {
    std::this_thread::sleep_for(slowness);
    return {at::sin(at::arange(4, at::kFloat) * (static_cast<double>(i) + 1)), at::scalar_tensor(i % 3, at::kLong)};
  }
  std::optional<std::size_t> size() const override { return length; }
};

struct Training {
  int epochs = 1'000'000;
  Points points{};
  std::function<void(Accelerator&, torch::nn::Linear&)> in_epoch{};  // after each
  std::function<void()> in_step{};                                   // of rank 0
  std::vector<at::Tensor>* weights = nullptr;                        // at its end
  std::atomic<int>* steps = nullptr;
};

// A body that trains a linear layer.
inline std::function<void(Accelerator&)> body(const Training& training) {
  return [training](Accelerator& accelerator) {
    torch::nn::Linear net(4, 3);
    torch::optim::SGD sgd(net->parameters(), torch::optim::SGDOptions(0.05).momentum(0.9));
    data::DataLoader data(Points(training.points), {.batch_size = 2, .shuffle = true});
    auto [model, optimizer, loader] = accelerator.prepare(net, sgd, data);
    while (loader.epoch() < training.epochs && !accelerator.stop_requested()) {
      for (auto& [points, classes] : loader) {
        auto window = accelerator.accumulate(model);
        accelerator.backward(torch::nn::functional::cross_entropy(model(points), classes));
        optimizer.step();
        optimizer.zero_grad();
        if (accelerator.is_main() && training.in_step) training.in_step();
        if (accelerator.is_main() && training.steps) *training.steps += 1;
      }
      if (training.in_epoch) training.in_epoch(accelerator, net);
    }
    if (accelerator.is_main() && training.weights)
      for (const auto& parameter : model.parameters()) training.weights->push_back(parameter.detach().clone());
  };
}

inline LaunchConfig ranks(int count) { return {.cpu = count}; }

inline bool reaches(const Session& session, SessionState state) {
  for (int i = 0; i < 20'000; ++i) {
    if (session.status().state == state) return true;
    std::this_thread::sleep_for(1ms);
  }
  return false;
}

inline void wait_for_step(const Session& session, std::int64_t step) {
  for (int i = 0; i < 20'000 && session.progress().step < step; ++i) std::this_thread::sleep_for(1ms);
  CHECK(session.progress().step >= step);
}

// Events, as they come.
class Log {
 public:
  SessionOptions options() {
    return {.on_event = [this](const SessionEvent& event) {
      const std::lock_guard lock(mutex_);
      events_.push_back(event);
    }};
  }
  std::vector<SessionEvent> of(SessionEvent::Kind kind) const {
    const std::lock_guard lock(mutex_);
    std::vector<SessionEvent> found;
    for (const SessionEvent& event : events_)
      if (event.kind == kind) found.push_back(event);
    return found;
  }
  bool has(SessionEvent::Kind kind) const {
    for (int i = 0; i < 20'000; ++i, std::this_thread::sleep_for(1ms))
      if (!of(kind).empty()) return true;
    return false;
  }

 private:
  mutable std::mutex mutex_;
  std::vector<SessionEvent> events_;
};

}  // namespace tandem::test
