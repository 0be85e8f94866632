// Training that goes on from a checkpoint as if it had never stopped.
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <thread>

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>
#include <torch/optim/lbfgs.h>
#include <torch/optim/sgd.h>

#include "support/error_of.h"
#include "support/failing_calls.h"
#include "support/ranks.h"
#include "support/temp_dir.h"

using namespace tandem;
using namespace tandem::test;
namespace fs = std::filesystem;

namespace {

constexpr std::int64_t kFeatures = 6;

// Sample i: features and a class that depend on i only.
struct Points : torch::data::datasets::Dataset<Points> {
  std::size_t length;
  explicit Points(std::size_t length) : length(length) {}
  torch::data::Example<> get(std::size_t i) override {
    const auto index = static_cast<double>(i);
    return {at::sin(at::arange(kFeatures, at::kFloat) * (index + 1)), at::scalar_tensor(i % 3, at::kLong)};
  }
  std::optional<std::size_t> size() const override { return length; }
};

enum class Kind { sgd, adamw };

struct Run {
  Kind optimizer = Kind::adamw;
  std::int64_t batch_size = 2;
  bool dropout = true;
  int epochs = 3;
  std::size_t samples = 26;
  int stop_after = -1;                       // micro-batches; -1: never
  std::string save_to = {}, load_from = {};  // at the stop; before the start
  bool background = false;
};

// What a training of all ranks ended with.
struct Ended {
  std::vector<at::Tensor> weights;
  std::vector<double> losses;  // of rank 0
  std::int64_t updates = 0;
  double lr = 0;
};

// One training on one rank.
Ended train(Accelerator& accelerator, const Run& run) {
  torch::nn::Sequential net(torch::nn::Linear(kFeatures, 8), torch::nn::Tanh(),
                            torch::nn::Dropout(run.dropout ? 0.3 : 0.0), torch::nn::Linear(8, 3));
  std::unique_ptr<torch::optim::Optimizer> inner;
  if (run.optimizer == Kind::sgd)
    inner = std::make_unique<torch::optim::SGD>(net->parameters(), torch::optim::SGDOptions(0.05).momentum(0.9));
  else
    inner = std::make_unique<torch::optim::AdamW>(net->parameters(), torch::optim::AdamWOptions(0.01).amsgrad(true));
  optim::SequentialLR schedule(*inner, optim::with_warmup(4, optim::stage<optim::CosineAnnealingLR>({.T_max = 30})));
  data::DataLoader data(Points(run.samples), {.batch_size = run.batch_size, .shuffle = true});
  auto [model, optimizer, scheduler, loader] = accelerator.prepare(net, *inner, schedule, data);
  optim::ExponentialMovingAverage average(model, {.decay = 0.9});
  accelerator.register_for_checkpointing(average);
  if (!run.load_from.empty()) accelerator.load_state(run.load_from);
  Ended ended;
  int micro_batches = 0;
  const auto step = [&, &optimizer = optimizer, &scheduler = scheduler](const at::Tensor& loss) {
    accelerator.backward(loss);
    optimizer.step();
    scheduler.step();
    optimizer.zero_grad();
    if (accelerator.sync_gradients()) average.update();
    ended.losses.push_back(loss.item<double>());
  };
  const auto stops = [&] {
    const bool now = ++micro_batches == run.stop_after;
    if (now) accelerator.save_state(run.save_to, {.background = run.background});
    return now;
  };
  while (loader.epoch() < run.epochs) {
    for (auto& [points, classes] : loader) {
      {
        auto window = accelerator.accumulate(model);
        step(torch::nn::functional::cross_entropy(model(points), classes));
      }
      if (stops()) return ended;
    }
    for (auto i = loader.steps_without_batch(); i > 0; --i) {  // other ranks have a batch
      {
        auto window = accelerator.accumulate_and_close(model);
        step(model(at::zeros({0, kFeatures})).sum());
      }
      if (stops()) return ended;
    }
  }
  for (const auto& parameter : model.parameters()) ended.weights.push_back(parameter.detach().clone());
  for (const auto& [name, tensor] : average.averages()) ended.weights.push_back(tensor.clone());
  ended.updates = optimizer.updates();
  ended.lr = scheduler.inner()->last_lr()[0];
  return ended;
}

Ended train_on(int ranks, const Run& run, const LaunchConfig& config = {}) {
  return on_ranks<Ended>(
      ranks, [&](Accelerator& accelerator) { return train(accelerator, run); }, config)[0];
}

bool same_bits(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  bool same = a.size() == b.size() && !a.empty();
  for (std::size_t i = 0; same && i < a.size(); ++i) same = at::equal(a[i], b[i]);
  return same;
}

double largest_difference(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, (a[i] - b[i]).abs().max().item<double>());
  return largest;
}

void check_resumes(int ranks, Run run, const LaunchConfig& config, int stop_after) {
  CAPTURE(ranks, stop_after, run.background, run.optimizer == Kind::sgd);
  const TempDir dir;
  const Ended whole = train_on(ranks, run, config);
  Run first = run, second = run;
  first.stop_after = stop_after;
  first.save_to = second.load_from = dir / "state";
  const Ended begun = train_on(ranks, first, config), rest = train_on(ranks, second, config);
  CHECK(same_bits(rest.weights, whole.weights));
  std::vector<double> losses = begun.losses;
  losses.insert(losses.end(), rest.losses.begin(), rest.losses.end());
  CHECK(losses == whole.losses);
  CHECK(rest.updates == whole.updates);
  CHECK(rest.lr == whole.lr);
}

// A training of `steps` updates of a single layer on this rank.
struct Small {
  torch::nn::Linear net{3, 2};
  torch::optim::AdamW inner{net->parameters(), 0.1};
  nn::Model<torch::nn::LinearImpl> model;
  optim::AcceleratedOptimizer optimizer;

  explicit Small(Accelerator& accelerator) : model(accelerator.prepare(net)), optimizer(accelerator.prepare(inner)) {}

  void train(Accelerator& accelerator, int steps = 1) {
    for (int i = 0; i < steps; ++i) {
      accelerator.backward(model(at::ones({1, 3})).square().sum());
      optimizer.step();
      optimizer.zero_grad();
    }
  }
};

}  // namespace

TEST_CASE("a training that is saved and resumed ends with the same bits: ranks, optimizers, places in the epoch") {
  for (const int ranks : {1, 2, 3})
    for (const Kind kind : {Kind::sgd, Kind::adamw})
      for (const int stop_after : {1, 4, 6, 9}) check_resumes(ranks, {.optimizer = kind}, {}, stop_after);
}

TEST_CASE("the same in dispatch mode, with a running generator and without shared weights") {
  LaunchConfig dispatch, running, alone;
  dispatch.data_loader.dispatch_batches = true;
  running.data_loader.use_seedable_sampler = false;
  alone.sharding = Sharding::none;
  for (const auto& config : {dispatch, running, alone})
    for (const int stop_after : {3, 5}) check_resumes(2, {}, config, stop_after);
}

TEST_CASE("the same with uneven ranks, accumulation and saves in the background") {
  LaunchConfig uneven, accumulating;
  uneven.data_loader.even_batches = false;  // of 7 steps the second rank has 6
  accumulating.gradient_accumulation_steps = 2;
  for (const int stop_after : {5, 6, 7, 8}) check_resumes(2, {.background = true}, uneven, stop_after);
  check_resumes(2, {.background = true}, accumulating, 4);
  check_resumes(2, {.optimizer = Kind::sgd}, accumulating, 7);  // the shorter window at the end of the epoch
}

TEST_CASE("the same in fp16, with the state of the scaler") {
  LaunchConfig config;
  config.mixed_precision = Precision::fp16;
  config.grad_scaler.growth_interval = 3;
  check_resumes(2, {}, config, 4);
}

TEST_CASE("1, 2, 4 and 1 ranks go on from each other, with the global batch and the order of samples") {
  const Run plain{.dropout = false, .epochs = 4, .samples = 32};
  const auto part = [&](std::int64_t ranks) {
    Run run = plain;
    run.batch_size = 4 / ranks;
    return run;
  };
  const TempDir dir;
  const Ended whole = train_on(1, part(1));
  std::string from;
  Ended last;
  for (const std::int64_t ranks : {1, 2, 4, 1}) {
    Run run = part(ranks);
    run.load_from = from;
    if (ranks > 1 || from.empty()) {
      run.stop_after = 5;
      run.save_to = dir / ("after-" + std::to_string(ranks));
    }
    last = train_on(static_cast<int>(ranks), run);
    from = run.save_to;
  }
  CHECK(largest_difference(last.weights, whole.weights) < 1e-5);
  CHECK(last.updates == whole.updates);
}

TEST_CASE("a loader that skips steps is where its loader stands") {
  run_ranks(2, [](Accelerator& accelerator) {
    auto loader = accelerator.prepare(data::DataLoader(Points(40), {.batch_size = 2, .shuffle = true}));
    auto rest = loader.skip_first_batches(3);
    int taken = 0;
    for (auto& batch : rest) {
      (void)batch;
      if (loader.state_dict().step != 3 + ++taken) throw std::logic_error("it stands elsewhere");
      if (taken == 2) break;
    }
    if (loader.state_dict().step != 0) throw std::logic_error("the next epoch does not begin with step 0");
  });
}

TEST_CASE("the last of two loads before an epoch is the one that counts") {
  LaunchConfig config;
  config.data_loader.use_seedable_sampler = false;
  const auto first = on_ranks<std::vector<at::Tensor>>(
      2,
      [](Accelerator& accelerator) {
        auto loader = accelerator.prepare(data::DataLoader(Points(40), {.batch_size = 2, .shuffle = true}));
        std::vector<data::LoaderState> states;
        std::vector<at::Tensor> expected, got;
        for (int epoch = 0; epoch < 2; ++epoch)
          for (auto& [points, classes] : loader)
            if (loader.loader().status().step == 1)
              states.push_back(loader.state_dict());
            else if (loader.loader().status().step == 2)
              expected.push_back(points);
        for (const int which : {0, 1, 0}) {
          loader.load_state_dict(states[1 - static_cast<std::size_t>(which)]);
          loader.load_state_dict(states[static_cast<std::size_t>(which)]);
          for (auto& [points, classes] : loader) {
            got.push_back(points);
            break;
          }
          if (!at::equal(got.back(), expected[static_cast<std::size_t>(which)]))
            throw std::logic_error("other samples");
        }
        return got;
      },
      config);
  CHECK_FALSE(at::equal(first[0][0], first[0][1]));
}

TEST_CASE("checkpoints in a directory that is named with a slash are kept, and counted") {
  const TempDir dir;
  LaunchConfig config;
  config.checkpoints = {.directory = dir.path() + "/", .total_limit = 1};
  run_ranks(
      1,
      [](Accelerator& accelerator) {
        Small small(accelerator);
        for (int i = 0; i < 3; ++i) accelerator.save_state();
        accelerator.load_state();
      },
      config);
  CHECK(io::list_checkpoints(dir.path()) == std::vector<std::string>{dir / "checkpoint_2"});
}

TEST_CASE("the state of optimizers of other classes is each rank's own after a load") {
  const TempDir dir;
  const auto weights = [&](bool resume) {
    return on_ranks<at::Tensor>(2, [&](Accelerator& accelerator) {
      torch::nn::Linear net(2, 1);
      torch::optim::LBFGS inner(net->parameters(), torch::optim::LBFGSOptions(0.1).max_iter(2));
      auto model = accelerator.prepare(net);
      auto optimizer = accelerator.prepare(inner);
      const auto train = [&] {
        inner.step([&] {
          inner.zero_grad();
          auto loss = (model(at::ones({1, 2})) - 1).square().sum();
          accelerator.backward(loss);
          return loss;
        });
      };
      if (resume)
        accelerator.load_state(dir / "state");
      else
        train();
      if (!resume) accelerator.save_state(dir / "state");
      train();
      return net->weight.detach().clone();
    });
  };
  const auto whole = weights(false), resumed = weights(true);
  CHECK(at::equal(whole[0], resumed[0]));
  CHECK(at::equal(whole[1], resumed[1]));
}

TEST_CASE("another global batch is an error that names both") {
  const TempDir dir;
  train_on(2, {.stop_after = 2, .save_to = dir / "state"});
  const auto error = run_ranks_expecting_error(
      2, [&](Accelerator& accelerator) { train(accelerator, {.batch_size = 5, .load_from = dir / "state"}); });
  CHECK_THAT(error.what(), ContainsSubstring("global batch"));
}

TEST_CASE("checkpoints have automatic names, a limit, and a link to the latest") {
  const TempDir dir;
  LaunchConfig config;
  config.checkpoints = {.directory = dir / "out/checkpoints", .total_limit = 2};
  std::vector<std::string> saved;
  run_ranks(
      2,
      [&](Accelerator& accelerator) {
        Small small(accelerator);
        for (int i = 0; i < 4; ++i) {
          small.train(accelerator);
          const auto path = accelerator.save_state({}, {.background = i % 2 == 1});
          if (accelerator.is_main()) saved.push_back(path);
        }
      },
      config);
  CHECK(saved.back() == dir / "out/checkpoints/checkpoint_3");
  CHECK(io::list_checkpoints(config.checkpoints.directory) == std::vector<std::string>{saved[2], saved[3]});
  CHECK(fs::read_symlink(config.checkpoints.directory + "/latest") == "checkpoint_3");
  run_ranks(
      2,
      [&](Accelerator& accelerator) {
        Small small(accelerator);
        const auto path = accelerator.load_state();
        if (path != saved[3] || small.optimizer.updates() != 4) throw std::logic_error("resumed from " + path);
        accelerator.load_state(config.checkpoints.directory + "/latest");
        if (accelerator.save_state() != dir / "out/checkpoints/checkpoint_4") throw std::logic_error("the next name");
      },
      config);
}

TEST_CASE("a damaged newest checkpoint is told of, and the one before is loaded") {
  const TempDir dir;
  LaunchConfig config;
  config.checkpoints.directory = dir.path();
  std::vector<std::string> warnings;
  config.on_warning = [&](const std::string& text) { warnings.push_back(text); };
  const auto save = [&] {
    run_ranks(
        1,
        [](Accelerator& accelerator) {
          Small small(accelerator);
          small.train(accelerator);
          accelerator.save_state();
        },
        config);
  };
  save();
  save();
  fs::resize_file(dir / "checkpoint_1/optimizer.bin", 100);
  run_ranks(
      2,
      [&](Accelerator& accelerator) {
        Small small(accelerator);
        if (accelerator.load_state() != dir / "checkpoint_0") throw std::logic_error("the damaged one was loaded");
      },
      config);
  REQUIRE(warnings.size() == 1);
  CHECK_THAT(warnings[0], ContainsSubstring("checkpoint_1/optimizer.bin: is cut off"));
  fs::resize_file(dir / "checkpoint_0/model.safetensors", 100);
  const auto error = run_ranks_expecting_error(
      2,
      [](Accelerator& accelerator) {
        Small small(accelerator);
        accelerator.load_state();
      },
      config);
  CHECK_THAT(error.what(), ContainsSubstring("checkpoint_1/optimizer.bin: is cut off"));
}

TEST_CASE("what was prepared or registered differently is an error, and nothing is changed") {
  const TempDir dir;
  run_ranks(2, [&](Accelerator& accelerator) {
    Small small(accelerator);
    small.train(accelerator);
    accelerator.save_state(dir / "state");
  });
  const auto error_with = [&](const std::function<void(Accelerator&)>& more) {
    return on_ranks<std::string>(2, [&](Accelerator& accelerator) {
      Small small(accelerator);
      const at::Tensor before = small.net->weight.detach().clone();
      more(accelerator);
      std::string text = error_of<CheckpointError>([&] { accelerator.load_state(dir / "state"); });
      if (!at::equal(before, small.net->weight)) text += " and the weights have changed";
      small.train(accelerator);
      return text;
    });
  };
  torch::nn::Linear other(2, 2);
  const auto another_model = error_with([](Accelerator& accelerator) { accelerator.prepare(torch::nn::Linear(2, 2)); });
  CHECK_THAT(another_model[0], ContainsSubstring("is of 1 prepared models, and there are 2"));
  CHECK(another_model[1] == another_model[0]);
  optim::ExponentialMovingAverage average(*other);
  CHECK_THAT(error_with([&](Accelerator& accelerator) { accelerator.register_for_checkpointing(average); })[1],
             ContainsSubstring("is of 0 objects registered for checkpointing, and there are 1"));

  const auto other_class = on_ranks<std::string>(2, [&](Accelerator& accelerator) {
    torch::nn::Linear net(3, 2);
    torch::optim::SGD inner(net->parameters(), 0.1);
    auto [model, optimizer] = accelerator.prepare(net, inner);
    const at::Tensor before = net->weight.detach().clone();
    const std::string text = error_of<CheckpointError>([&] { accelerator.load_state(dir / "state"); });
    return at::equal(before, net->weight) ? text : "the weights have changed";
  });
  CHECK_THAT(other_class[1], ContainsSubstring("parameter group 0 has no 'momentum'"));
  const auto missing = run_ranks_expecting_error(2, [&](Accelerator& accelerator) {
    Small small(accelerator);
    accelerator.load_state(dir / "nowhere");
  });
  CHECK_THAT(missing.what(), ContainsSubstring("nowhere: does not exist"));
}

TEST_CASE("a state cannot be saved in the middle of a window") {
  const TempDir dir;
  const auto error = run_ranks_expecting_error(2,
                                               [&](Accelerator& accelerator) {
                                                 Small small(accelerator);
                                                 auto window = accelerator.accumulate(small.model);
                                                 accelerator.save_state(dir / "state");
                                               },
                                               {.gradient_accumulation_steps = 2});
  CHECK_THAT(error.what(), ContainsSubstring("the accumulation window is open"));
}

TEST_CASE("a failed save is the same error on all ranks, and training goes on; in the background, at the next call") {
  const TempDir dir;
  std::ofstream(dir / "file") << "somebody's";
  const auto texts = on_ranks<std::vector<std::string>>(2, [&](Accelerator& accelerator) {
    Small small(accelerator);
    small.train(accelerator);
    std::vector<std::string> errors;
    errors.push_back(error_of<CheckpointError>([&] { accelerator.save_state(dir / "file"); }));
    accelerator.save_state(dir / "file/below", {.background = true});
    small.train(accelerator);
    errors.push_back(error_of<CheckpointError>([&] { accelerator.wait_for_saves(); }));
    accelerator.wait_for_saves();  // told once
    accelerator.save_state(dir / "good", {.background = true});
    return errors;
  });
  CHECK(texts[0] == texts[1]);
  CHECK_THAT(texts[0][0], ContainsSubstring("cannot be a checkpoint: it is there already, and no directory"));
  CHECK_THAT(texts[0][1], ContainsSubstring("a save in the background failed"));
  io::CheckpointReader(dir / "good").verify();
  const auto error = run_ranks_expecting_error(2, [&](Accelerator& accelerator) {
    Small small(accelerator);
    accelerator.save_state(dir / "file/below", {.background = true});
  });
  CHECK_THAT(error.what(), ContainsSubstring("a save in the background failed"));
}

TEST_CASE(
    "whichever system call of a save fails, the checkpoint before is there, or the new one, and training goes on") {
  struct Failing {
    const char* call;
    int error;
  };
  const bool background = GENERATE(false, true);
  const auto failing =
      GENERATE(Failing{"open", EMFILE}, Failing{"mkdtemp", EACCES}, Failing{"write", ENOSPC}, Failing{"write", EINTR},
               Failing{"write", 0}, Failing{"fsync", EIO}, Failing{"close", EIO}, Failing{"renameat2", EIO},
               Failing{"rename", EIO}, Failing{"symlink", EROFS});
  CAPTURE(background, failing.call, failing.error);
  int nth = 0, failures = 0;
  for (bool came = true; came && nth < 200; ++nth) {
    const TempDir dir;
    LaunchConfig config;
    config.checkpoints = {.directory = dir.path(), .total_limit = 1};
    std::string said;
    std::int64_t updates = 0;
    std::vector<at::Tensor> saved(3);
    run_ranks(
        2,
        [&](Accelerator& accelerator) {
          Small small(accelerator);
          const auto train_and_keep = [&] {
            small.train(accelerator);
            const auto index = static_cast<std::size_t>(small.optimizer.updates());
            if (accelerator.is_main()) saved[index] = small.net->weight.detach().clone();
          };
          train_and_keep();
          accelerator.save_state();
          train_and_keep();
          std::optional<FailingCall> armed;
          if (accelerator.is_main()) armed.emplace(failing.call, nth + 1, failing.error);
          const std::string mine = error_of<CheckpointError>([&] {
            accelerator.save_state({}, {.background = background});
            accelerator.wait_for_saves();
          });
          if (accelerator.is_main()) said = mine, came = armed->came();
          armed.reset();
          accelerator.wait_for_everyone();
          accelerator.load_state();
          if (accelerator.is_main()) updates = small.optimizer.updates();
          if (accelerator.is_main() && !at::equal(small.net->weight, saved[static_cast<std::size_t>(updates)]))
            throw std::logic_error("the weights are of another step than the optimizer");
          small.train(accelerator);
          accelerator.save_state();
        },
        config);
    CAPTURE(nth, said);
    REQUIRE(io::list_checkpoints(dir.path()).size() >= 1);
    REQUIRE((updates == 1 || updates == 2));
    if (said.empty()) REQUIRE(updates == 2);
    failures += said.empty() ? 0 : 1;
  }
  CHECK(nth > 1);
  const bool harmless = failing.error == 0 || (failing.error == EINTR && std::string(failing.call) == "write");
  if (harmless)
    CHECK(failures == 0);
  else
    CHECK(failures > 0);
}

TEST_CASE("whichever system call of a load fails or is short, it is an error or does not matter") {
  struct Failing {
    const char* call;
    int error;
  };
  const auto failing =
      GENERATE(Failing{"open", EMFILE}, Failing{"read", EIO}, Failing{"read", EINTR}, Failing{"read", 0},
               Failing{"pread", EIO}, Failing{"pread", EINTR}, Failing{"pread", 0});
  CAPTURE(failing.call, failing.error);
  const TempDir dir;
  at::Tensor saved;
  run_ranks(2, [&](Accelerator& accelerator) {
    Small small(accelerator);
    small.train(accelerator);
    accelerator.save_state(dir / "state");
    if (accelerator.is_main()) saved = small.net->weight.detach().clone();
  });
  int nth = 0, failures = 0;
  for (bool came = true; came && nth < 200; ++nth) {
    std::string said;
    at::Tensor loaded;
    run_ranks(2, [&](Accelerator& accelerator) {
      Small small(accelerator);
      std::optional<FailingCall> armed;
      if (accelerator.is_main()) armed.emplace(failing.call, nth + 1, failing.error);
      const std::string mine = error_of<CheckpointError>([&] { accelerator.load_state(dir / "state"); });
      if (accelerator.is_main()) said = mine, came = armed->came(), loaded = small.net->weight.detach().clone();
      armed.reset();
      small.train(accelerator);
    });
    CAPTURE(nth, said);
    REQUIRE(at::equal(loaded, saved) == said.empty());
    failures += said.empty() ? 0 : 1;
  }
  CHECK(nth > 1);
  if (failing.error == 0 || (failing.error == EINTR && std::string(failing.call) == "pread"))
    CHECK(failures == 0);
  else if (failing.error != EINTR)
    CHECK(failures > 0);
}

TEST_CASE("every byte of a checkpoint that is flipped is found, and names its file") {
  const TempDir dir;
  run_ranks(1, [&](Accelerator& accelerator) {
    Small small(accelerator);
    small.train(accelerator);
    accelerator.save_state(dir / "state");
  });
  run_ranks(1, [&](Accelerator& accelerator) {
    Small small(accelerator);
    for (const auto& entry : fs::directory_iterator(dir / "state")) {
      std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
      const auto size = static_cast<std::streamoff>(fs::file_size(entry));
      const std::streamoff step = size > 3000 ? 37 : 1;  // of the generators' states, which are long
      for (std::streamoff at = 0; at < size; at += step) {
        const auto flip = [&] {
          file.seekg(at);
          const auto byte = static_cast<char>(file.get() ^ 0x10);
          file.seekp(at);
          file.put(byte).flush();
        };
        flip();
        const auto said = error_of<CheckpointError>([&] { accelerator.load_state(dir / "state"); });
        flip();
        if (said.find(entry.path().filename().string()) == std::string::npos)
          throw std::logic_error(entry.path().string() + ", byte " + std::to_string(at) + ": " + said);
      }
    }
    accelerator.load_state(dir / "state");
  });
}

TEST_CASE("a training saves while another one in the same process trains") {
  const TempDir dir;
  const auto run = [&](const std::string& name, std::uint64_t seed) {
    std::vector<at::Tensor> weights;
    LaunchConfig config;
    config.seed = seed;
    config.checkpoints.directory = dir / name;
    run_ranks(
        2,
        [&](Accelerator& accelerator) {
          torch::nn::Linear net(3, 2);
          torch::optim::AdamW inner(net->parameters(), 0.1);
          auto [model, optimizer] = accelerator.prepare(net, inner);
          for (int i = 0; i < 30; ++i) {
            accelerator.backward(model(at::rand({1, 3})).square().sum());
            optimizer.step();
            optimizer.zero_grad();
            accelerator.save_state({}, {.background = i % 2 == 0});
          }
          if (accelerator.is_main()) weights.push_back(net->weight.detach().clone());
        },
        config);
    return weights;
  };
  const auto alone = run("alone", 1);
  std::vector<at::Tensor> beside;
  std::thread other([&] { run("other", 2); });
  beside = run("beside", 1);
  other.join();
  CHECK(same_bits(alone, beside));
  for (const char* name : {"alone", "other", "beside"}) {
    const auto all = io::list_checkpoints(dir / name);
    CHECK(all.size() == 30);
    for (const auto& path : all) io::CheckpointReader(path).verify();
  }
}

TEST_CASE("a save in the background has the state of its moment, and one that comes too soon can be left out") {
  const TempDir dir;
  struct Slow {
    c10::IValue state_dict() const { return {}; }
    void load_state_dict(const c10::IValue&) {}
  };
  const auto weights = on_ranks<std::vector<at::Tensor>>(2, [&](Accelerator& accelerator) {
    Small small(accelerator);
    std::vector<at::Tensor> saved;
    for (int i = 0; i < 20; ++i) {
      small.train(accelerator, 3);
      saved.push_back(small.net->weight.detach().clone());
      const auto path = accelerator.save_state(
          dir / std::to_string(i), {.background = true, .when_busy = i % 2 ? WhenBusy::skip : WhenBusy::wait});
      if (path.empty()) saved.back() = at::Tensor();
    }
    return saved;
  });
  int left_out = 0;
  for (int i = 0; i < 20; ++i) {
    const at::Tensor& expected = weights[0][static_cast<std::size_t>(i)];
    left_out += expected.defined() ? 0 : 1;
    REQUIRE(fs::exists(dir / std::to_string(i)) == expected.defined());
    if (!expected.defined()) continue;
    torch::nn::Linear net(3, 2);
    io::load_model(dir / std::to_string(i), *net);
    CHECK(at::equal(net->weight, expected));
  }
  CHECK(left_out <= 10);
}

TEST_CASE("hooks add files and get them back; optimizers of other classes keep their own format") {
  const TempDir dir;
  std::vector<StateFiles> got(2);
  const auto body = [&](Accelerator& accelerator, bool load) {
    torch::nn::Linear net(2, 1);
    torch::optim::LBFGS inner(net->parameters());
    auto [model, optimizer] = accelerator.prepare(net, inner);
    auto& mine = got[static_cast<std::size_t>(accelerator.rank())];
    accelerator.register_state_hooks({.save =
                                          [] {
                                            return StateFiles{{"camera.json", "{}"}, {"empty", ""}};
                                          },
                                      .load = [&mine](const StateFiles& files) { mine = files; }});
    if (load)
      accelerator.load_state(dir / "state");
    else
      accelerator.save_state(dir / "state");
  };
  run_ranks(2, [&](Accelerator& accelerator) { body(accelerator, false); });
  run_ranks(2, [&](Accelerator& accelerator) { body(accelerator, true); });
  for (const auto& files : got) CHECK(files == StateFiles{{"camera.json", "{}"}, {"empty", ""}});
}

TEST_CASE("after a load ranks that had shared state train on alone: every rank has its own") {
  // Writing to a weight ends the division; state that was only referred to must have become the rank's own by then.
  const TempDir dir;
  const auto weights_after = [&](Sharding sharding) {
    LaunchConfig config;
    config.sharding = sharding;
    run_ranks(
        2,
        [&](Accelerator& accelerator) {
          Small small(accelerator);
          small.train(accelerator, 3);
          accelerator.save_state(dir / "state");
        },
        config);
    return on_ranks<at::Tensor>(
        2,
        [&](Accelerator& accelerator) {
          Small small(accelerator);
          accelerator.load_state(dir / "state");
          accelerator.local_sgd(2, [&](nn::LocalSgd& local) {
            for (int i = 0; i < 4; ++i) {
              auto window = accelerator.accumulate(small.model);
              accelerator.backward(small.model(at::full({1, 3}, 1.0 + accelerator.rank())).square().sum());
              small.optimizer.step();
              small.optimizer.zero_grad();
              local.step();
            }
          });
          return small.net->weight.detach().clone();
        },
        config);
  };
  const auto divided = weights_after(Sharding::automatic), whole = weights_after(Sharding::none);
  CHECK(at::equal(divided[0], whole[0]));
  CHECK(at::equal(divided[1], whole[1]));
}
