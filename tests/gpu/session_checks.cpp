// Sessions on GPUs: what embedding programs rely on.
#include <chrono>
#include <thread>
#include <vector>

#include <c10/core/CachingDeviceAllocator.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>

#include "gpu/checks.h"
#include "support/temp_dir.h"
#include "tandem/tandem.h"

namespace tandem::gpu_checks {
namespace {

using Clock = std::chrono::steady_clock;
using Weights = std::vector<at::Tensor>;

constexpr int kEpochs = 8;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

void sleep(int milliseconds) { std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds)); }

// True as soon as `holds` does; false when it has not within half a minute.
bool soon(const std::function<bool()>& holds) {
  const auto start = Clock::now();
  while (!holds())
    if (seconds_since(start) > 30)
      return false;
    else
      sleep(1);
  return true;
}

bool same(const Weights& a, const Weights& b) {
  bool equal = !a.empty() && a.size() == b.size();
  for (std::size_t i = 0; equal && i < a.size(); ++i) equal = at::equal(a[i], b[i]);
  return equal;
}

Weights weights_of(Session& session) {
  Weights weights;
  const ModelSnapshot snapshot = session.snapshot().get();
  for (const auto& [name, tensor] : snapshot.models.at(0)) weights.push_back(tensor);
  return weights;
}

// A small training, which goes on from `directory` if one is given.
void train(Accelerator& a, int epochs, const std::string& directory = {}) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(7);
  const auto inputs = at::randn({512, 16}, generator), targets = at::randint(0, 4, {512}, generator, at::kLong);
  torch::nn::Sequential net(torch::nn::Linear(16, 64), torch::nn::ReLU(), torch::nn::Linear(64, 4));
  torch::optim::AdamW adamw(net->parameters(), torch::optim::AdamWOptions(1e-3));
  auto [model, optimizer, loader] =
      a.prepare(net, adamw, data::DataLoader(data::TensorDataset(inputs, targets), {.batch_size = 8, .shuffle = true}));
  if (!directory.empty()) a.load_state(directory);
  while (loader.epoch() < epochs && !a.stop_requested())
    for (auto& batch : loader) {
      const auto window = a.accumulate(model);
      a.backward(torch::nn::functional::cross_entropy(model(batch.data), batch.target));
      optimizer.step();
      optimizer.zero_grad();
    }
}

Weights trained(int ranks, const std::function<void(Accelerator&)>& body, const std::function<void(Session&)>& host) {
  Session session;
  session.start(on_gpus(ranks), body);
  host(session);
  session.wait();
  return weights_of(session);
}

// Where a training that did not come to its end has saved its state.
std::string saved_and_cancelled(int ranks, const std::function<void(Accelerator&)>& body,
                                const std::string& directory) {
  Session session;
  session.start(on_gpus(ranks), body);
  soon([&] { return session.progress().step > 2; });
  auto saved = session.save_now(directory);
  saved.wait();
  session.cancel();
  session.wait();
  return saved.get();
}

void check_bits(int ranks, const std::string& name) {
  const auto body = [](Accelerator& a) { train(a, kEpochs); };
  const auto plain = trained(ranks, body, [](Session&) {});
  const auto paused = trained(ranks, body, [](Session& session) {
    for (int i = 0; i < 5; ++i) {
      session.pause({.release_memory = i % 2 == 0});
      sleep(3);
      session.snapshot();
      session.resume();
      sleep(3);
    }
  });
  expect(same(plain, paused), name + "the same bits when paused and looked at");

  const test::TempDir directory;
  std::string saved;
  std::string error = error_of([&] { saved = saved_and_cancelled(ranks, body, directory / "state"); });
  Weights resumed;
  error += error_of([&] {
    resumed = trained(
        ranks, [&](Accelerator& a) { train(a, kEpochs, saved); }, [](Session&) {});
  });
  expect(same(plain, resumed), name + "the same bits when saved, cancelled and gone on with " + error);
}

// Bytes that LibTorch's allocator has of the first GPU; -1 where it does not count.
std::int64_t reserved_bytes() {
  auto* const allocator = dynamic_cast<c10::DeviceAllocator*>(c10::GetAllocator(at::kCUDA));
  if (!allocator) return -1;
  return allocator->getDeviceStats(0)
      .reserved_bytes[static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE)]
      .current;
}

void check_released_memory(int ranks, const std::string& name) {
  Session session;
  session.start(on_gpus(ranks), [](Accelerator& a) {
    at::empty({64 << 20}, at::dtype(at::kByte).device(a.device()));  // is kept for reuse
    train(a, 1 << 30);
  });
  bool paused = soon([&] { return session.progress().step > 2; });
  const std::int64_t before = reserved_bytes();
  session.pause({.release_memory = true});
  paused = paused && soon([&] { return session.progress().state == SessionState::paused; });
  const std::int64_t after = reserved_bytes();
  session.cancel();
  session.wait();
  expect(paused && (before < 0 || after <= before - (64 << 20)),
         name + "a pause gave memory back: from " + std::to_string(before) + " to " + std::to_string(after) + " bytes");
}

void check_cancelled(int ranks, const std::string& name) {
  Session session;
  session.start(on_gpus(ranks), [](Accelerator& a) {
    const auto value = at::ones({1 << 20}, a.device());
    for (;;) a.reduce(value);
  });
  soon([&] { return session.status().state == SessionState::running; });
  sleep(50);
  const auto start = Clock::now();
  session.cancel();
  const std::string error = error_of([&] { session.wait(); });
  expect(error.empty() && session.status().state == SessionState::cancelled,
         name + "cancelled among all-reduces after " + std::to_string(seconds_since(start)) + " s " + error);
}

// A host that computes on the GPU meanwhile sees nothing of it.
void check_host(int ranks, const std::string& name) {
  c10::Device device(at::kCPU);
  launch(on_gpus(1), [&](Accelerator& a) { device = a.device(); });
  const auto draw = [&] {
    at::manual_seed(11);  // of all devices: the fake one draws with the CPU's default generator
    Weights drawn;
    for (int i = 0; i < 20; ++i) {
      const auto a = at::randn({128, 128}, device), b = at::rand({128, 128}, device);
      drawn.push_back(a.mm(b).cpu());
    }
    return drawn;
  };
  const auto alone = draw();
  Session session;
  session.start(on_gpus(ranks), [](Accelerator& a) { train(a, 1 << 30); });
  soon([&] { return session.progress().step > 2; });
  bool equal = true;
  for (int i = 0; i < 10; ++i) equal = equal && same(alone, draw());
  session.request_stop();
  const std::string error = error_of([&] { session.wait(); });
  expect(equal && session.status().state == SessionState::ended,
         name + "the host's own work on the GPU has the same bits " + error);
}

}  // namespace

void check_sessions(int ranks) {
  const std::string name = std::to_string(ranks) + " ranks, a session: ";
  check_bits(ranks, name);
  check_released_memory(ranks, name);
  check_cancelled(ranks, name);
  check_host(ranks, name);
}

}  // namespace tandem::gpu_checks
