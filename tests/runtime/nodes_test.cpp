// Trainings on several nodes, against the same one in one process with as many ranks: to the bit.
#include <array>
#include <chrono>
#include <filesystem>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include <ATen/CPUGeneratorImpl.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>

#include "support/error_of.h"
#include "support/node_results.h"
#include "support/ranks.h"
#include "support/temp_dir.h"

using namespace tandem;
using namespace tandem::test;

namespace {

struct Line {
  torch::nn::Sequential net{torch::nn::Linear(6, 700), torch::nn::BatchNorm1d(700), torch::nn::Dropout(0.3),
                            torch::nn::Linear(700, 3)};
  torch::optim::AdamW adamw{net->parameters(), 0.01};
  optim::CosineAnnealingLR cosine{adamw, {.T_max = 50}};
};

// The same on all ranks.
data::TensorDataset<torch::data::Example<>> some_samples() {
  const auto generator = at::make_generator<at::CPUGeneratorImpl>(11);
  return {at::randn({53, 6}, generator), at::randint(0, 3, {53}, generator, at::kLong)};
}

// Passes over a shuffled dataset whose length no number of ranks divides.
std::string train(Accelerator& a, int epochs, const std::function<void(nn::GradientReducer&)>& set_up = {}) {
  Line line;
  data::DataLoader samples(some_samples(), {.batch_size = 4, .shuffle = true});
  auto [model, optimizer, scheduler, batches] = a.prepare(line.net, line.adamw, line.cosine, samples);
  if (set_up) set_up(model.reducer());
  double losses = 0;
  for (int epoch = 0; epoch < epochs; ++epoch)
    for (auto& [inputs, targets] : batches) {
      auto window = a.accumulate(model);
      const auto loss = torch::nn::functional::cross_entropy(model(inputs), targets);
      a.backward(loss);
      a.clip_grad_norm_(model, 1.0);
      optimizer.step();
      scheduler.step();
      optimizer.zero_grad();
      losses += a.reduce(loss.item<double>());
    }
  return bits_of(*line.net) + std::to_string(losses) + bits_of(torch::rand({3}));
}

}  // namespace

TEST_CASE("a training on several nodes has the bits of one process, in all precisions and with accumulation") {
  const Precision precision = GENERATE(Precision::no, Precision::bf16, Precision::fp16);
  check_same_on_nodes({.mixed_precision = precision, .gradient_accumulation_steps = 2},
                      [](Accelerator& a) { return train(a, 2); });
}

TEST_CASE("exact mode on several nodes has its bits") {
  check_same_on_nodes({.exact = ExactOptions{}}, [](Accelerator& a) { return train(a, 1); }, {{1, 1}, {1, 2, 1}});
  const Body body = [](Accelerator& a) { return bits_of(torch::ones({1})) + train(a, 1); };
  const auto on_one = results_on({1}, {.exact = ExactOptions{}}, body);
  CHECK((results_on({1, 1}, {.exact = ExactOptions{}}, body)[1] == on_one[0]));
}

TEST_CASE("communication hooks on several nodes have the bits of one process") {
  const auto hook = GENERATE(0, 1);
  check_same_on_nodes({},
                      [&](Accelerator& a) {
                        return train(a, 1, [&](nn::GradientReducer& reducer) {
                          reducer.set_communication_hook(hook == 0 ? nn::power_sgd({.start_powerSGD_iter = 2})
                                                                   : nn::bf16_compression());
                        });
                      },
                      {{2, 1}});
}

TEST_CASE("every collective on several nodes gives what one process gives") {
  check_same_on_nodes({}, [](Accelerator& a) {
    std::string said;
    const auto say = [&](const at::Tensor& tensor) { said += bits_of(tensor) + "|"; };
    const int rank = a.rank();
    for (const std::int64_t length : {1, 5000, 200'000}) {
      for (const auto op : {comm::ReduceOp::sum, comm::ReduceOp::mean, comm::ReduceOp::max})
        say(a.reduce(torch::rand({length}), op));
      at::Tensor mine = torch::rand({length});
      a.broadcast(mine, a.world_size() - 1);
      say(mine);
      say(a.gather(torch::rand({length + rank})));
      say(a.pad_across_ranks(torch::rand({length + rank})));
      comm::Communicator& calls = a.communicator();
      say(calls.reduce_scatter(torch::rand({length * a.world_size()}), comm::ReduceOp::sum));
      std::vector<at::Tensor> parts;
      for (int to = 0; to < a.world_size(); ++to) parts.push_back(torch::rand({length + to}));
      for (const at::Tensor& part : calls.all_to_all(parts)) say(part);
      at::Tensor reduced = torch::rand({length});
      calls.reduce(reduced, comm::ReduceOp::sum, a.world_size() - 1);
      say(reduced);
    }
    at::Tensor across = torch::rand({300, 400}).t();  // not contiguous
    a.communicator().broadcast(across, 0);
    say(across);
    for (const int number : a.gather(rank * 3)) said += std::to_string(number) + ",";
    said += std::to_string(a.reduce(0.1 * (rank + 1)));
    using Object = std::map<std::string, std::pair<std::vector<std::string>, at::Tensor>>;
    for (const Object& object : a.gather_objects(
             Object{{"rank", {{std::string(static_cast<std::size_t>(rank), 'x'), ""}, torch::rand({2})}}})) {
      said += object.at("rank").first.front();
      say(object.at("rank").second);
    }
    said += a.broadcast_object(std::string("from ") + std::to_string(rank), a.world_size() - 1);
    if (rank == a.world_size() - 1) a.set_trigger();
    said += a.check_trigger() ? "set" : "not set";
    said += a.check_trigger() ? "set" : "not set";
    a.wait_for_everyone();
    said += std::to_string(a.main_first([&] { return rank; }));
    return said;
  });
}

TEST_CASE("what cannot be sent to another node is an error on all that names the type") {
  const auto errors =
      try_to_launch_on_nodes({1, 1}, {}, [](Accelerator& a) { a.gather_objects(std::make_shared<int>(a.rank())); });
  for (const auto& error : errors) CHECK_THAT(text_of_error(error), ContainsSubstring("std::shared_ptr<int>"));
}

TEST_CASE("uneven inputs and local SGD on several nodes have the bits of one process") {
  const bool local = GENERATE(false, true);
  check_same_on_nodes({},
                      [&](Accelerator& a) {
                        Line line;
                        auto [model, optimizer, scheduler] = a.prepare(line.net, line.adamw, line.cosine);
                        const auto step = [&, &model = model, &optimizer = optimizer] {
                          auto window = a.accumulate(model);
                          a.backward(model(torch::randn({6, 6})).pow(2).mean());
                          optimizer.step();
                          optimizer.zero_grad();
                        };
                        if (local)
                          a.local_sgd(2, [&](nn::LocalSgd& sgd) {
                            for (int i = 0; i < 5; ++i) {
                              step();
                              sgd.step();
                            }
                          });
                        else
                          a.join_uneven_inputs([&] {
                            for (int i = 0; i < 2 + 2 * a.rank(); ++i) step();
                          });
                        step();
                        return bits_of(*line.net);
                      },
                      {{1, 1}, {1, 2, 1}});
}

TEST_CASE("a state that is saved on several nodes goes on on any number of them") {
  const TempDir dir;
  const std::string path = dir / "state";
  const auto go_on = [&](Accelerator& a, bool saves, bool background) {
    Line line;
    data::DataLoader samples(some_samples(), {.batch_size = 4, .shuffle = true});
    auto [model, optimizer, scheduler, batches] = a.prepare(line.net, line.adamw, line.cosine, samples);
    const auto epoch = [&, &model = model, &optimizer = optimizer, &batches = batches] {
      for (auto& [inputs, targets] : batches) {
        auto window = a.accumulate(model);
        a.backward(torch::nn::functional::cross_entropy(model(inputs), targets));
        optimizer.step();
        optimizer.zero_grad();
      }
    };
    if (saves) {
      epoch();
      a.save_state(path, {.background = background});
      a.wait_for_saves();
    } else {
      a.load_state(path);
    }
    epoch();
    return bits_of(*line.net) + bits_of(torch::rand({3}));
  };
  for (const bool background : {false, true})
    for (const std::vector<int>& saving : {std::vector<int>{3}, std::vector<int>{2, 1}}) {
      const auto saved = results_on(saving, {}, [&](Accelerator& a) { return go_on(a, true, background); });
      for (const std::vector<int>& loading : {std::vector<int>{3}, std::vector<int>{1, 2}, std::vector<int>{1, 1, 1}})
        CHECK((results_on(loading, {}, [&](Accelerator& a) { return go_on(a, false, background); }) == saved));
    }
}

TEST_CASE("the error of one rank ends all nodes, which name it, its node and its host") {
  for (const int failing : {0, 2}) {
    const auto errors = try_to_launch_on_nodes({1, 2}, {}, [&](Accelerator& a) {
      a.wait_for_everyone();
      if (a.rank() == failing) throw DataError("the disk is full");
      a.wait_for_everyone();
      a.wait_for_everyone();
    });
    const int node = failing == 0 ? 0 : 1;
    const std::string rank = "rank " + std::to_string(failing);
    CHECK(text_of_error(errors[static_cast<std::size_t>(node)]) == rank + ": the disk is full");
    CHECK_THAT(text_of_error(errors[static_cast<std::size_t>(1 - node)]),
               Catch::Matchers::StartsWith(rank + ", node " + std::to_string(node) + " (host ") &&
                   Catch::Matchers::EndsWith("): the disk is full"));
  }
}

TEST_CASE("the rank that does not come within the time limit is named on all nodes") {
  const auto errors = try_to_launch_on_nodes({1, 1, 2}, {.timeout = std::chrono::seconds(1)}, [&](Accelerator& a) {
    a.wait_for_everyone();
    while (a.rank() == 3 && !a.cancelled()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    a.wait_for_everyone();
  });
  for (const auto& error : errors)
    CHECK_THAT(text_of_error(error), Catch::Matchers::StartsWith("rank 3") && ContainsSubstring("time limit of 1 s") &&
                                         ContainsSubstring("rank 3: running"));
}

TEST_CASE("launches on several nodes follow each other at one port") {
  const int port = comm::port_of(comm::listen_at(0));
  constexpr int kLaunches = 4;
  std::vector<float> sums(2);
  std::vector<std::thread> threads;
  for (int node = 0; node < 2; ++node)
    threads.emplace_back([&, node] {
      LaunchConfig config{.cpu = 1, .threads_per_rank = 1};
      config.nodes = Nodes{.node = node, .nodes = 2, .head = "127.0.0.1", .port = port};
      for (int i = 0; i < kLaunches; ++i)
        launch(config, [&](Accelerator& a) {
          sums[static_cast<std::size_t>(node)] += a.reduce(at::ones({1}), comm::ReduceOp::sum).item<float>();
        });
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(sums == std::vector<float>(2, 2.0f * kLaunches));
}

TEST_CASE("nodes with other settings refuse each other, and name both") {
  const int port = comm::port_of(comm::listen_at(0));
  std::vector<std::string> errors(2);
  std::vector<std::thread> threads;
  for (int node = 0; node < 2; ++node)
    threads.emplace_back([&, node] {
      LaunchConfig config{.cpu = 1, .seed = static_cast<std::uint64_t>(node + 7)};
      config.nodes = Nodes{.node = node, .nodes = 2, .head = "127.0.0.1", .port = port};
      errors[static_cast<std::size_t>(node)] = error_of<ConfigError>([&] { launch(config, [](Accelerator&) {}); });
    });
  for (std::thread& thread : threads) thread.join();
  for (const std::string& error : errors) {
    CHECK_THAT(error, ContainsSubstring("seed is 7 on node 0") && ContainsSubstring("8 on node 1"));
  }
}

TEST_CASE("what several nodes cannot do yet is refused by name") {
  const auto refused = [](LaunchConfig config, const std::function<void(Accelerator&)>& body) {
    const auto errors = try_to_launch_on_nodes({1, 1}, std::move(config), body);
    return text_of_error(errors[0]) + "|" + text_of_error(errors[1]);
  };
  const auto nothing = [](Accelerator&) {};
  CHECK_THAT(refused({}, [](Accelerator& a) { a.profile({.directory = "."}, [] {}); }),
             ContainsSubstring("profile with several machines"));
  LaunchConfig alone{.cpu = 1};
  AcceleratorState state = examine(alone);
  state.config.nodes = Nodes{.nodes = 2, .head = "127.0.0.1"};
  CHECK_THAT(error_of<ConfigError>([&] { launch_on(state, nothing); }), ContainsSubstring("examined with them"));
  CHECK_THAT(error_of<ConfigError>([&] { check_exact(state.config, nothing, 1); }),
             ContainsSubstring("check_exact with several machines"));
}

TEST_CASE("ranks of several nodes know their node, and which is its first rank") {
  const auto said = results_on({1, 2}, {}, [](Accelerator& a) {
    int here = 0;
    a.on_local_main([&] { here = a.local_main_first([] { return 5; }); });
    if (!a.is_local_main()) a.local_main_first([] {});
    return c10::str(a.state().node, " ", a.local_rank(), " ", a.state().first_rank(), " ", a.state().world_size(), " ",
                    here);
  });
  CHECK(said == std::vector<std::string>{"0 0 0 3 5", "1 0 1 3 5", "1 1 1 3 0"});
}

TEST_CASE("ranks of one node share weights, gradients and state, and those of several have the bits of one process") {
  // By rank: where its weights, gradients and averages lie, and how the divided updates went.
  const auto places_on = [](const std::vector<int>& nodes, Sharding sharding) {
    std::vector<std::vector<std::uintptr_t>> places(4);
    const auto results = results_on(nodes, {.sharding = sharding}, [&](Accelerator& a) {
      Line line;
      auto [model, optimizer] = a.prepare(line.net, line.adamw);
      torch::manual_seed(a.rank());
      for (int step = 0; step < 3; ++step) {
        a.backward(model(torch::rand({4, 6})).sum());
        a.clip_grad_norm_(model, 0.5);
        optimizer.step();
        if (step < 2) optimizer.zero_grad();
      }
      const auto place = [](const at::Tensor& tensor) {
        return reinterpret_cast<std::uintptr_t>(std::as_const(tensor).const_data_ptr());
      };
      const at::Tensor weight = line.net->parameters().front();
      const auto& state =
          static_cast<const torch::optim::AdamWParamState&>(*line.adamw.state().at(weight.unsafeGetTensorImpl()));
      places[static_cast<std::size_t>(a.rank())] = {place(weight), place(weight.grad()), place(state.exp_avg())};
      return bits_of(*line.net) + bits_of(state.exp_avg());
    });
    return std::pair(places, results);
  };
  for (const auto sharding : {Sharding::automatic, Sharding::optimizer}) {
    const auto [places, results] = places_on({2, 2}, sharding);
    const std::size_t shared_from = sharding == Sharding::automatic ? 0 : 1;  // optimizer: weights are each rank's own
    for (std::size_t what = 0; what < 3; ++what) {
      CAPTURE(what);
      CHECK((places[0][what] == places[1][what]) == (what >= shared_from));
      CHECK((places[2][what] == places[3][what]) == (what >= shared_from));
      CHECK(places[0][what] != places[2][what]);
    }
    CHECK((results == places_on({4}, sharding).second));
  }
  const auto [apart, results] = places_on({2, 2}, Sharding::none);
  CHECK(apart[0][0] != apart[1][0]);
  CHECK((results == places_on({4}, Sharding::none).second));
}

TEST_CASE("options that are others on another node are told, and the ranks go on each by itself") {
  std::vector<std::string> warnings;
  std::mutex mutex;
  LaunchConfig config{.on_warning = [&](const std::string& text) {
    const std::lock_guard lock(mutex);
    warnings.push_back(text);
  }};
  results_on({2, 1}, config, [](Accelerator& a) {
    Line line;
    auto [model, optimizer] = a.prepare(line.net, line.adamw);
    for (int step = 0; step < 2; ++step) {
      if (step == 1 && a.rank() == 2)
        static_cast<torch::optim::AdamWOptions&>(line.adamw.param_groups().front().options()).lr(0.5);
      a.backward(model(torch::ones({4, 6})).sum());
      optimizer.step();
      optimizer.zero_grad();
    }
    return std::string("done");
  });
  REQUIRE(warnings.size() == 1);
  CHECK_THAT(warnings[0], ContainsSubstring("lr of group 0") && ContainsSubstring("0.01 on rank 0") &&
                              ContainsSubstring("0.5 on rank 2"));
}

namespace {

// A session on each of two nodes, with one rank and two.
struct TwoSessions {
  explicit TwoSessions(const std::function<void(Accelerator&)>& body) {
    const int port = comm::port_of(comm::listen_at(0));
    for (int node = 0; node < 2; ++node) {
      LaunchConfig config{.cpu = node + 1, .threads_per_rank = 1};
      config.nodes = Nodes{.node = node, .nodes = 2, .head = "127.0.0.1", .port = port};
      of_nodes[static_cast<std::size_t>(node)].start(config, body);
    }
  }

  void wait_for_step(std::int64_t step) const {
    for (const Session& session : of_nodes)
      while (session.progress().step < step && session.status().state != SessionState::failed)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }

  std::array<Session, 2> of_nodes;
};

// Until it is asked to stop.
void train_on(Accelerator& a) {
  Line line;
  auto [model, optimizer, batches] =
      a.prepare(line.net, line.adamw,
                data::DataLoader(data::TensorDataset(torch::arange(360.0).reshape({60, 6}) / 360), {.batch_size = 4}));
  while (!a.stop_requested())
    for (auto& batch : batches) {
      auto window = a.accumulate(model);
      a.backward(model(batch).sum());
      optimizer.step();
      optimizer.zero_grad();
    }
}

}  // namespace

TEST_CASE("sessions of several nodes stop all at the same step, and node 0's saves") {
  const TempDir folder;
  TwoSessions sessions(train_on);
  auto& [first, second] = sessions.of_nodes;
  sessions.wait_for_step(5);
  CHECK_THAT(error_of<ConfigError>([&] { second.pause(); }), ContainsSubstring("pause with several machines"));
  CHECK_THAT(error_of<ConfigError>([&] { second.save_now(folder.path() + "/no").get(); }),
             ContainsSubstring("only the session of node 0 saves"));
  CHECK(first.save_now(folder.path() + "/saved").get() == folder.path() + "/saved");
  CHECK(std::filesystem::exists(folder.path() + "/saved"));
  const ModelSnapshot before = second.snapshot().get();
  CHECK(before.step >= 5);
  second.request_stop();
  first.wait();
  second.wait();
  CHECK(first.progress().step == second.progress().step);
  CHECK(first.progress().step >= before.step);
  const ModelSnapshot ended = first.snapshot().get(), other = second.snapshot().get();
  for (std::size_t i = 0; i < ended.models[0].size(); ++i)
    CHECK(bits_of(ended.models[0][i].second) == bits_of(other.models[0][i].second));
}

TEST_CASE("a session that is cancelled on one node ends all") {
  TwoSessions sessions(train_on);
  sessions.wait_for_step(2);
  sessions.of_nodes[1].cancel();
  sessions.of_nodes[1].wait();
  CHECK(sessions.of_nodes[1].status().state == SessionState::cancelled);
  CHECK_THAT(error_of<RankError>([&] { sessions.of_nodes[0].wait(); }), ContainsSubstring("cancelled by its caller"));
}

namespace {

// Two passes with three layers, a reduction each. The batch does not fit: on rank r, memory runs out when the gradient
// of a layer is there, another one in each pass and on each rank, so ranks have started different reductions.
std::string train_in_vain_first(Accelerator& a) {
  std::string bits;
  const auto found = a.find_executable_batch_size(16, [&](std::int64_t size) {
    torch::nn::Sequential net(torch::nn::Linear(300, 300), torch::nn::Linear(300, 300), torch::nn::Linear(300, 300));
    torch::optim::AdamW adamw(net->parameters(), 0.01);
    auto [model, optimizer] = a.prepare(net, adamw);
    int pass = 0;
    for (int layer = 0; layer < 3; ++layer)
      net[layer]->as<torch::nn::Linear>()->bias.register_hook([&, layer](const at::Tensor&) {
        if (size > 2 && pass == 2 && (a.rank() + size / 4) % 3 == layer)
          TORCH_CHECK_WITH(OutOfMemoryError, false, "out of memory, as the test has it");
      });
    while (++pass <= 2) {
      a.backward(model(at::ones({size, 300}) * (a.rank() + 1)).square().mean());
      a.clip_grad_norm_(model, 1.0);
      optimizer.step();
      optimizer.zero_grad();
    }
    bits = bits_of(*net);
  });
  return bits + std::to_string(found) + std::to_string(a.reduce(a.rank() + 1.0));
}

}  // namespace

TEST_CASE("a batch size that fails in backward passes is given up on several nodes too") {
  LaunchConfig config;
  config.gradient_reducer.bucket_bytes = config.gradient_reducer.first_bucket_bytes = 1000;
  check_same_on_nodes(config, train_in_vain_first, {{1, 1}, {2, 1}, {1, 2}, {1, 2, 1}});
}
