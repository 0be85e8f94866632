// What loaders give on several nodes, against one process with as many ranks.
#include <random>

#include <torch/data/transforms/lambda.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>

#include "data/loader_base.h"
#include "support/error_of.h"
#include "support/index_data.h"
#include "support/node_results.h"
#include "support/temp_dir.h"

using namespace tandem;
using namespace tandem::test;

namespace {

std::string text_of(const data::PreparedDataLoaderBase& loader) {
  const data::StepInfo& info = loader_of(loader).status();
  return c10::str("[", info.step, info.last, info.last_of_all, " ", info.remainder, " ", info.samples_to_keep, " ",
                  info.sub_step, info.sub_steps, "]");
}

// All that a rank sees of some loops; `leave_at`: the step at which the first one is left.
template <class Loader>
std::string loops(const Loader& loader, int count, int leave_at = -1) {
  std::string seen;
  for (int loop = 0; loop < count; ++loop) {
    for (auto& batch : loader) {
      data::for_each_tensor(batch, [&](at::Tensor& tensor) { seen += c10::str(tensor.sizes()) + bits_of(tensor); });
      seen += text_of(loader);
      if (loop == 0 && loader_of(loader).status().step == leave_at) break;
    }
    seen += c10::str("end ", loader.remainder(), " ", loader.epoch(), "\n");
  }
  return seen;
}

// A sample of a type of the program's.
struct Word {
  at::Tensor letters;
  std::string name;
  friend auto batch_fields(Word& word) { return std::tie(word.letters); }
  friend std::string to_bytes(const Word& word) { return comm::pack(word.letters, word.name); }
  friend void from_bytes(std::string_view bytes, Word& word) { comm::unpack(bytes, word.letters, word.name); }
};

struct Words : torch::data::datasets::Dataset<Words, Word> {
  Word get(std::size_t index) override {
    return {at::rand({static_cast<std::int64_t>(index % 3 + 1)}), std::to_string(index)};
  }
  std::optional<std::size_t> size() const override { return 17; }
};

// A stream whose samples draw, and which can be read once.
data::IterableDataset<at::Tensor> drawing(std::int64_t length) {
  return data::IterableDataset([length](std::int64_t epoch) {
    return [length, epoch, at = std::int64_t{0}]() mutable {
      return at < length ? std::optional(at::rand({2}) + static_cast<double>(at++ + 100 * epoch)) : std::nullopt;
    };
  });
}

struct Unreadable : torch::data::datasets::Dataset<Unreadable, at::Tensor> {
  std::size_t bad;
  explicit Unreadable(std::size_t bad) : bad(bad) {}
  at::Tensor get(std::size_t index) override {
    if (index == bad) throw std::runtime_error("unreadable");
    return at::ones({1});
  }
  std::optional<std::size_t> size() const override { return 40; }
};

// Batches of 1, 2, 3, … samples, in an order that is drawn.
struct Growing final : data::BatchSampler {
  std::int64_t size() const override { return 7; }
  Batches batches(std::int64_t) override {
    const Batch order = list(torch::randperm(28, at::kLong));
    Batches all;
    for (std::ptrdiff_t i = 0, at = 0; i < 7; at += ++i)
      all.emplace_back(order.begin() + at, order.begin() + at + i + 1);
    return all;
  }
};

// Says itself what it is.
struct Marked : torch::data::datasets::Dataset<Marked, at::Tensor> {
  std::uint64_t mark;
  explicit Marked(std::uint64_t mark) : mark(mark) {}
  at::Tensor get(std::size_t) override { return at::ones({1}); }
  std::optional<std::size_t> size() const override { return 30; }
  std::uint64_t fingerprint() const { return mark + 1; }
};

const LaunchConfig kDispatching{.data_loader = {.dispatch_batches = true}};

std::string errors_on(const std::vector<int>& nodes, const LaunchConfig& config,
                      const std::function<void(Accelerator&)>& body, const std::string& wanted) {
  std::string others;
  for (const auto& error : try_to_launch_on_nodes(nodes, config, body))
    if (text_of_error(error).find(wanted) == std::string::npos) others += "'" + text_of_error(error) + "' ";
  return others;
}

}  // namespace

TEST_CASE("dispatched epochs on several nodes are those of one process, in all shapes") {
  const bool split = GENERATE(false, true), drop_last = GENERATE(false, true);
  const int workers = GENERATE(0, 2);
  check_same_on_nodes({.data_loader = {.split_batches = split, .dispatch_batches = true}}, [&](Accelerator& a) {
    const auto of = [&](std::size_t length, bool shuffle) {
      return a.prepare(data::DataLoader(
          Augmented(length),
          {.batch_size = 12, .shuffle = shuffle, .drop_last = drop_last, .workers = split ? 0 : workers}));
    };
    return loops(of(131, true), 3, 1) + loops(of(48, false), 1) + loops(of(5, true), 2) +
           loops(of(131, true).skip_first_batches(2), 2);
  });
}

TEST_CASE("epochs that each rank reads on several nodes are those of one process, also of batch samplers") {
  const bool even = GENERATE(false, true);
  check_same_on_nodes({.data_loader = {.even_batches = even}},
                      [&](Accelerator& a) {
                        const auto own = std::make_shared<Growing>();
                        return loops(a.prepare(data::DataLoader(Augmented(31), {.batch_size = 2, .shuffle = true})), 3,
                                     1) +
                               loops(a.prepare(data::DataLoader(Augmented(28), {.batch_sampler = own})), 2);
                      },
                      {{1, 1}, {1, 2, 1}});
}

TEST_CASE("dispatched batches of any type that can be bytes come to other nodes as they are") {
  check_same_on_nodes(kDispatching, [](Accelerator& a) {
    const auto words = data::DataLoader(Words(), {.batch_size = 3, .shuffle = true}).with_collate([](auto samples) {
      return samples;
    });
    std::string seen;
    for (auto& batch : a.prepare(words))
      for (Word& word : batch) seen += word.name + bits_of(word.letters);
    const auto strided =
        data::DataLoader(Augmented(31), {.batch_size = 4}).with_collate([](std::vector<at::Tensor> rows) {
          return std::tuple(at::cat(rows).to(at::kFloat).view({-1, 1}).expand({-1, 5}).contiguous().t(), at::Tensor(),
                            at::cat(rows).to_sparse());
        });
    for (auto& [across, nothing, sparse] : a.prepare(strided))
      seen += c10::str(across.strides(), nothing.defined()) + bits_of(across) + bits_of(sparse.to_dense());
    return seen;
  });
}

TEST_CASE("streams on several nodes are read once, by rank 0, in both modes") {
  const bool dispatch = GENERATE(false, true);
  const int workers = GENERATE(0, 1);
  check_same_on_nodes({.data_loader = {.dispatch_batches = dispatch}}, [&](Accelerator& a) {
    const auto prepare = [&](const auto& dataset, bool drop_last) {
      return a.prepare(data::DataLoader(dataset, {.batch_size = 3, .drop_last = drop_last, .workers = workers}));
    };
    return loops(prepare(drawing(40), false), 3, 1) + loops(prepare(drawing(40), true), 2) +
           loops(prepare(drawing(2), false), 1) + loops(prepare(counting(0), false), 1) +
           loops(prepare(drawing(40), false).skip_first_batches(1), 2);
  });
  const auto reads = std::make_shared<std::atomic<int>>(0);
  const data::IterableDataset once([reads](std::int64_t) {
    return [reads, at = std::int64_t{0}]() mutable {
      *reads += 1;
      return at < 20 ? std::optional(at++) : std::nullopt;
    };
  });
  results_on({1, 2}, {.data_loader = {.dispatch_batches = dispatch}},
             [&](Accelerator& a) { return loops(a.prepare(data::DataLoader(once, {.batch_size = 2})), 1); });
  CHECK(*reads == 21);
}

TEST_CASE("exact mode on several nodes dispatches its logical shards") {
  LaunchConfig config{.exact = ExactOptions{}};
  const bool dispatch = GENERATE(false, true);
  config.data_loader.dispatch_batches = dispatch;
  check_same_on_nodes(config,
                      [](Accelerator& a) {
                        return loops(a.prepare(data::DataLoader(drawing(90), {.batch_size = 2})), 1) +
                               loops(a.prepare(data::DataLoader(Augmented(75), {.batch_size = 2, .shuffle = true})), 1);
                      },
                      {{1, 1}, {1, 2, 1}});
}

TEST_CASE("loops within loops on several nodes neither mix nor hold each other up") {
  check_same_on_nodes(kDispatching,
                      [](Accelerator& a) {
                        const auto prepare = [&](std::size_t length) {
                          return a.prepare(data::DataLoader(
                              Augmented(length), {.batch_size = 2, .shuffle = true, .workers = 2, .prefetch = 4}));
                        };
                        const auto train = prepare(90), judged = prepare(50);
                        std::string seen;
                        for (int epoch = 0; epoch < 2; ++epoch)
                          for (auto& batch : train) {
                            seen += bits_of(batch);
                            const auto step = loader_of(train).status().step;
                            if (step % 4 == 1) seen += loops(judged, 1, step == 1 ? 3 : -1);
                            if (step % 3 == 0) seen += std::to_string(a.reduce(batch.sum().item<double>()));
                          }
                        return seen;
                      },
                      {{1, 1}, {1, 2, 1}});
}

TEST_CASE(
    "a dispatched training on several nodes has the bits of one process, and goes on from the middle of an epoch") {
  const TempDir dir;
  const std::string path = dir / "state";
  const auto train = [&](Accelerator& a, int from, int to) {
    torch::nn::Linear net(2, 1);
    torch::optim::AdamW adamw(net->parameters(), 0.01);
    data::DataLoader samples(Augmented(100), {.batch_size = 4, .shuffle = true, .workers = 1});
    auto [model, optimizer, batches] = a.prepare(net, adamw, samples);
    if (from > 0) a.load_state(path);
    for (int step = from; step < to;)
      for (auto& batch : batches) {
        {
          auto window = a.accumulate(model);
          a.backward(model(batch.to(at::kFloat)).pow(2).mean());
          optimizer.step();
          optimizer.zero_grad();
        }
        step += 1;
        if (step == 12 && to == 12) a.save_state(path);
        if (step == to) break;
      }
    return bits_of(*net);
  };
  for (const std::vector<int>& saving : {std::vector<int>{3}, std::vector<int>{1, 2}}) {
    results_on(saving, kDispatching, [&](Accelerator& a) { return train(a, 0, 12); });
    const auto whole = results_on({3}, kDispatching, [&](Accelerator& a) { return train(a, 0, 20); });
    for (const std::vector<int>& loading : {std::vector<int>{3}, std::vector<int>{2, 1}, std::vector<int>{1, 1, 1}})
      CHECK((results_on(loading, kDispatching, [&](Accelerator& a) { return train(a, 12, 20); }) == whole));
  }
}

TEST_CASE("a dataset that throws on rank 0 ends all nodes with its own text") {
  const int workers = GENERATE(0, 2);
  CHECK(errors_on(
            {1, 2}, kDispatching,
            [&](Accelerator& a) {
              loops(a.prepare(data::DataLoader(Unreadable(29), {.batch_size = 2, .workers = workers})), 1);
            },
            "reading sample 29 (epoch 0, step 4, for rank 2): unreadable") == "");
}

TEST_CASE("a rank that throws ends those that wait for a batch, and rank 0 that waits for room") {
  for (const int failing : {0, 1, 2})
    CHECK(errors_on(
              {2, 1}, kDispatching,
              [&](Accelerator& a) {
                auto loader = a.prepare(data::DataLoader(Augmented(500), {.batch_size = 1}));
                for (auto& batch : loader) {
                  (void)batch;
                  if (a.rank() == failing && loader_of(loader).status().step == 7)
                    throw std::runtime_error("had enough");
                }
              },
              "had enough") == "");
}

TEST_CASE("nodes that leave a dispatching loader at different steps are told so") {
  const int early = GENERATE(0, 1);
  const auto errors = try_to_launch_on_nodes({1, 1}, kDispatching, [&](Accelerator& a) {
    auto loader = a.prepare(data::DataLoader(Augmented(60), {.batch_size = 1}));
    loops(loader, 2, a.rank() == early ? 3 : 9);
  });
  // Rank 0 may go on: it hands to a rank that has left what that one drops.
  if (early == 0)
    for (const auto& error : errors) CHECK_THAT(text_of_error(error), ContainsSubstring("left an epoch"));
}

TEST_CASE("rank 0 that gives up a loader from which another node reads is told so, unless it has failed") {
  const bool fails = GENERATE(false, true);
  CHECK(errors_on(
            {1, 1}, kDispatching,
            [&](Accelerator& a) {
              {
                auto loader = a.prepare(data::DataLoader(Augmented(60), {.batch_size = 1}));
                loops(loader, a.is_main() ? 1 : 2);
              }
              if (fails && a.is_main()) {
                std::this_thread::sleep_for(std::chrono::milliseconds(700));
                throw std::runtime_error("the true error");
              }
              a.wait_for_everyone();
            },
            fails ? "the true error" : "rank 0 gave up a dispatching loader that rank 1 still reads from") == "");
}

TEST_CASE("batches that cannot be sent to another node are refused by their type, or by what they have") {
  const auto pointers = [](Accelerator& a) {
    a.prepare(data::DataLoader(Augmented(8), {.batch_size = 2}).with_collate([](std::vector<at::Tensor> rows) {
      return std::make_shared<at::Tensor>(at::cat(rows));
    }));
  };
  CHECK(errors_on({1, 1}, kDispatching, pointers, "batches of std::shared_ptr<at::Tensor> cannot be sent") == "");
  results_on({1, 1}, {}, [&](Accelerator& a) {  // which are not sent
    pointers(a);
    return std::string("x");
  });
  const auto with_gradient = [](Accelerator& a) {
    loops(a.prepare(data::DataLoader(Augmented(8), {.batch_size = 2}).with_collate([](std::vector<at::Tensor> rows) {
      return at::stack(rows).requires_grad_();
    })),
          1);
  };
  CHECK(errors_on({1, 1}, kDispatching, with_gradient, "has a tensor that requires a gradient") == "");
}

TEST_CASE("datasets that differ between nodes are an error on all") {
  const bool mapped = GENERATE(false, true);
  const auto prepare = [&](Accelerator& a) {
    const auto node = a.state().node;
    if (mapped)
      a.prepare(data::DataLoader(
          Marked(static_cast<std::uint64_t>(node)).map(torch::data::transforms::Lambda<at::Tensor>([](at::Tensor t) {
            return t;
          }))));
    else
      a.prepare(data::DataLoader(data::TensorDataset(at::full({30, 2}, node)), {.batch_size = 2}));
  };
  CHECK(errors_on(
            {2, 1}, {}, [&](Accelerator& a) { prepare(a); }, "rank 2 (node 1) has samples whose fingerprint is ") ==
        "");
  // Rank 0 alone reads.
  results_on({2, 1}, kDispatching, [&](Accelerator& a) {
    prepare(a);
    return std::string("x");
  });
  CHECK(errors_on(
            {1, 1}, {}, [&](Accelerator& a) { a.prepare(data::DataLoader(Augmented(a.rank() + 3U))); },
            "rank 1 (node 1) has length 4, batch_size 1, drop_last false, rank 0 has length 3") == "");
}

TEST_CASE("an order that differs between nodes ends all, and one that only some nodes draw does not") {
  struct Unseeded final : data::Sampler {
    std::mt19937 numbers;
    explicit Unseeded(unsigned seed) : numbers(seed) {}
    data::EpochOrder begin(std::int64_t length, std::int64_t, bool) override {
      at::Tensor order = at::arange(length);
      std::shuffle(order.mutable_data_ptr<std::int64_t>(), order.mutable_data_ptr<std::int64_t>() + length, numbers);
      return data::EpochOrder(order);
    }
  };
  const auto loop = [](Accelerator& a, unsigned seed) {
    auto loader =
        a.prepare(data::DataLoader(Augmented(40), {.batch_size = 2, .sampler = std::make_shared<Unseeded>(seed)}));
    loops(loader, 3);
  };
  const auto errors =
      try_to_launch_on_nodes({2, 1}, {}, [&](Accelerator& a) { loop(a, static_cast<unsigned>(a.state().node)); });
  for (const auto& error : errors)
    CHECK_THAT(text_of_error(error), ContainsSubstring("differs between nodes: node 0 has epoch 0 in an order whose") &&
                                         ContainsSubstring("node 1 has epoch 0 in an order whose"));
  CHECK(errors_on(
            {1, 1}, {},
            [&](Accelerator& a) {
              auto loader = a.prepare(data::DataLoader(Augmented(40), {.batch_size = 2}));
              loader.set_epoch(a.rank());
              loops(loader, 1);
            },
            "node 0 has epoch 0 in an order") == "");
  results_on({1, 1}, {}, [&](Accelerator& a) {
    auto loader = a.prepare(data::DataLoader(Augmented(40), {.batch_size = 2}));
    return a.is_main() ? loops(loader, 1) : std::string("x");
  });
}
