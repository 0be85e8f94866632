// The fake device itself: that it computes, and finds what is not ordered.
#include "support/fake_device.h"

#include <thread>

#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>

#include "support/catch.h"

using namespace tandem::test;

namespace {

c10::Stream new_stream(int device) {
  return c10::impl::VirtualGuardImpl(c10::kCUDA).getNewStream(fake::device(device));
}

struct Fake {
  Fake() {
    fake::install();
    fake::reset();
  }
};

}  // namespace

TEST_CASE("a network trains on the fake device as on the CPU") {
  const Fake fake;
  const auto losses_on = [](at::Device device) {
    torch::manual_seed(7);
    torch::nn::Sequential net(torch::nn::Conv2d(1, 4, 3), torch::nn::ReLU(), torch::nn::Flatten(),
                              torch::nn::Linear(144, 10));
    const at::Tensor inputs = at::randn({5, 1, 8, 8}).to(device), targets = at::arange(5).to(device);
    net->to(device);
    torch::optim::AdamW optimizer(net->parameters(), 1e-2);
    std::vector<double> losses;
    for (int step = 0; step < 5; ++step) {
      optimizer.zero_grad();
      const at::Tensor loss = torch::nn::functional::cross_entropy(net->forward(inputs), targets);
      loss.backward();
      optimizer.step();
      losses.push_back(loss.item<double>());
    }
    return losses;
  };
  const auto expected = losses_on(at::kCPU), losses = losses_on(fake::device(3));
  CHECK(expected.back() < expected.front());
  for (std::size_t i = 0; i < losses.size(); ++i) CHECK(losses[i] == Approx(expected[i]));
  CHECK(fake::races().empty());
}

TEST_CASE("two streams that use the same memory need an event between them") {
  const Fake fake;
  const c10::Stream other = new_stream(0);
  const bool ordered = GENERATE(true, false);
  at::Tensor value = at::ones({4}, fake::device(0));
  c10::Event event(c10::kCUDA);
  event.record(c10::impl::VirtualGuardImpl(c10::kCUDA).getStream(fake::device(0)));
  if (ordered) event.block(other);
  {
    const c10::StreamGuard on(other);
    value.add_(1);
  }
  CHECK(fake::races().empty() == ordered);
  CHECK(value.sum().item<double>() == 8);
  value.record_stream(other);
}

TEST_CASE("reads of two streams need no order, and waiting for a stream is one") {
  const Fake fake;
  const c10::Stream other = new_stream(0), third = new_stream(0);
  at::Tensor value = at::ones({4}, fake::device(0));
  value.sum().item<double>();  // the host waits for the writes
  for (const c10::Stream stream : {other, third}) {
    const c10::StreamGuard on(stream);
    value.sum();
  }
  CHECK(fake::races().empty());
  other.synchronize();
  third.synchronize();
  value.add_(1);
  CHECK(fake::races().empty());
}

TEST_CASE("memory must not go while another stream uses it") {
  const Fake fake;
  const c10::Stream other = new_stream(0);
  const bool recorded = GENERATE(true, false);
  {
    at::Tensor value = at::ones({4}, fake::device(0));
    value.sum().item<double>();
    const c10::StreamGuard on(other);
    value.add_(1);
    if (recorded) value.record_stream(other);
  }
  CHECK(fake::races().empty() == recorded);
}

TEST_CASE("threads use different devices, or one, at once") {
  const Fake fake;
  std::vector<std::thread> threads;
  std::atomic<int> right{0};
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&, i] {
      const c10::Device device = fake::device(i / 2);
      const c10::StreamGuard on(new_stream(i / 2));
      for (int n = 0; n < 50; ++n)
        right += at::full({8}, i, at::dtype(at::kFloat).device(device)).sum().item<int>() == 8 * i;
    });
  for (auto& thread : threads) thread.join();
  CHECK(right == 200);
  CHECK(fake::races().empty());
  CHECK(fake::allocated() == 0);
}
