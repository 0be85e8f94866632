// Every way to fail × every rank × every place of a training loop: the launch ends, with the right error and the rank
// to blame, and the next one works.
#include <atomic>
#include <stop_token>
#include <thread>

#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include "support/ranks.h"

using namespace tandem;
using namespace tandem::test;

namespace {

constexpr int kRanks = 3;
constexpr int kBatch = 2;
constexpr int kFaultyStep = 3;

enum class Fault { throws, calls_another, returns, hangs, is_cancelled };
enum class Place { forward, backward, reduce, shard_loader, dispatch_loader, barrier };

const char* const kFaults[] = {"throws", "calls another collective", "returns", "hangs", "is cancelled from outside"};
const char* const kPlaces[] = {"in forward",
                               "in backward",
                               "where the others reduce",
                               "in a shard loader",
                               "in a dispatching loader",
                               "where the others are in a barrier"};

struct Cell {
  Fault fault;
  int rank;
  Place place;
};

struct CellError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

bool is_loader(Place place) { return place == Place::shard_loader || place == Place::dispatch_loader; }

// These happen in the dataset itself. A dataset cannot return from the body, and may be read on another thread, which
// must not call collectives: those two faults happen where the others fetch their next batch.
bool in_dataset(const Cell& cell) {
  return is_loader(cell.place) && cell.fault != Fault::returns && cell.fault != Fault::calls_another;
}

bool meaningful(const Cell& cell) {
  // A hook in the middle of backward cannot return from the body.
  if (cell.fault == Fault::returns && cell.place == Place::backward) return false;
  // Ranks other than 0 never touch a dispatched dataset.
  return !in_dataset(cell) || cell.place == Place::shard_loader || cell.rank == 0;
}

std::vector<Cell> cells() {
  std::vector<Cell> all;
  for (int fault = 0; fault < 5; ++fault)
    for (int rank = 0; rank < kRanks; ++rank)
      for (int place = 0; place < 6; ++place) {
        const Cell cell{static_cast<Fault>(fault), rank, static_cast<Place>(place)};
        if (meaningful(cell)) all.push_back(cell);
      }
  return all;
}

// One launch that fails as `cell` says.
class Experiment {
 public:
  explicit Experiment(const Cell& cell) : cell_(cell) {}

  RankError run() {
    LaunchConfig config;
    config.data_loader.dispatch_batches = cell_.place == Place::dispatch_loader;
    config.cancel = stop_.get_token();
    // Long enough for a busy machine to start three ranks. Only these wait for it: a rank that hangs, and rank 0 in a
    // barrier while the others wait for batches that it should dispatch (their waits are no calls to compare).
    if (cell_.fault == Fault::hangs || cell_.place == Place::dispatch_loader) config.timeout = std::chrono::seconds(1);
    const std::jthread outside([this] {
      reached_.wait(false);
      if (cell_.fault == Fault::is_cancelled) stop_.request_stop();
    });
    const RankError error = run_ranks_expecting_error(kRanks, config, [this](Accelerator& a) { train(a); });
    reach();
    return error;
  }

 private:
  struct Samples : torch::data::datasets::Dataset<Samples, at::Tensor> {
    std::function<void(std::size_t)> on_read;
    explicit Samples(std::function<void(std::size_t)> on_read) : on_read(std::move(on_read)) {}
    at::Tensor get(std::size_t index) override {
      on_read(index);
      return at::ones({4});
    }
    std::optional<std::size_t> size() const override { return 10 * kRanks * kBatch; }
  };

  void train(Accelerator& a) {
    torch::nn::Linear net(4, 1);
    torch::optim::SGD sgd(net->parameters(), 0.01);
    data::DataLoader samples(Samples([this, &a](std::size_t index) {
                               const bool late = index >= kFaultyStep * kRanks * kBatch;
                               if (late && in_dataset(cell_) && a.rank() == cell_.rank) fail(a);
                             }),
                             {.batch_size = kBatch});
    auto [model, optimizer, loader] = a.prepare(net, sgd, samples);
    int step = 0;
    for (auto& batch : loader) {
      step += 1;
      const auto faulty = [&](Place place) {
        return step == kFaultyStep && a.rank() == cell_.rank && cell_.place == place;
      };
      if (faulty(Place::forward) && !fail(a)) return;
      const at::Tensor loss = model(batch).sum();
      if (faulty(Place::backward)) loss.register_hook([&](const at::Tensor&) { fail(a); });
      a.backward(loss);
      optimizer.step();
      optimizer.zero_grad();
      if (faulty(Place::reduce) && !fail(a)) return;
      a.reduce(loss.detach());
      if (faulty(Place::barrier) && !fail(a)) return;
      a.wait_for_everyone();
      if ((faulty(Place::shard_loader) || faulty(Place::dispatch_loader)) && !in_dataset(cell_) && !fail(a)) return;
    }
  }

  // False: the body is to return.
  bool fail(Accelerator& a) {
    if (cell_.fault == Fault::throws) throw CellError("disk on fire");
    if (cell_.fault == Fault::returns) return false;
    if (cell_.fault == Fault::calls_another) {
      a.broadcast_object(1.5);
      return true;
    }
    // A kernel that runs until the launch is over.
    reach();
    while (!a.cancelled()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return true;
  }

  void reach() {
    reached_ = true;
    reached_.notify_all();
  }

  const Cell cell_;
  std::stop_source stop_;
  std::atomic<bool> reached_{false};
};

void check_error(const Cell& cell, const RankError& error) {
  const std::string who = "rank " + std::to_string(cell.rank);
  switch (cell.fault) {
    case Fault::throws:
      CHECK_THROWS_AS(error.rethrow_cause(), CellError);
      CHECK(error.rank() == cell.rank);
      if (cell.place == Place::shard_loader || cell.place == Place::dispatch_loader)
        CHECK_THAT(error.what(), ContainsSubstring(who + ": reading sample") && ContainsSubstring(": disk on fire"));
      else
        CHECK(error.what() == who + ": disk on fire");
      return;
    case Fault::calls_another:  // two ranks differ: neither is to blame
      CHECK_THROWS_AS(error.rethrow_cause(), CollectiveError);
      CHECK_THAT(error.what(), ContainsSubstring("broadcast_object"));
      return;
    case Fault::returns:
      CHECK_THROWS_AS(error.rethrow_cause(), CollectiveError);
      CHECK_THAT(error.what(), ContainsSubstring(who + " returned") || ContainsSubstring(who + " gave up"));
      // Who waits for a batch finds the dispatcher's end before the body's; the text names rank 0.
      if (cell.place != Place::dispatch_loader) CHECK(error.rank() == cell.rank);
      return;
    case Fault::hangs:
      CHECK_THROWS_AS(error.rethrow_cause(), CollectiveError);
      CHECK(error.rank() == cell.rank);
      CHECK_THAT(error.what(), ContainsSubstring("time limit") && ContainsSubstring(who + ": running"));
      return;
    case Fault::is_cancelled:
      CHECK_THROWS_AS(error.rethrow_cause(), Cancelled);
      CHECK(error.rank() == -1);
      CHECK(error.what() == std::string("the launch was cancelled by its caller"));
      return;
  }
}

}  // namespace

TEST_CASE("whatever a rank does, wherever in training, the launch ends with the right error and the next one works") {
  for (const Cell& cell : cells()) {
    CAPTURE(cell.rank, kFaults[static_cast<int>(cell.fault)], kPlaces[static_cast<int>(cell.place)]);
    check_error(cell, Experiment(cell).run());
    const auto sums = on_ranks<float>(kRanks, [](Accelerator& a) { return a.reduce(at::ones({1})).item<float>(); });
    CHECK(sums == std::vector<float>{3, 3, 3});
  }
}

TEST_CASE("a launch whose caller has already cancelled it ends without training") {
  std::stop_source stop;
  stop.request_stop();
  LaunchConfig config;
  config.cancel = stop.get_token();
  const auto error = run_ranks_expecting_error(2, config, [](Accelerator& a) {
    for (;;) a.wait_for_everyone();
  });
  CHECK_THROWS_AS(error.rethrow_cause(), Cancelled);
}
