// The reducer over a backend whose reductions take their time in other threads, as a GPU's do.
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <random>
#include <thread>

#include <torch/csrc/autograd/custom_function.h>
#include <torch/nn/modules/linear.h>

#include "comm/rank_group.h"
#include "comm/shared_memory_communicator.h"
#include "core/cancel_token.h"
#include "nn/gradients.h"
#include "nn/reducer_group.h"

using namespace tandem;
using namespace tandem::test;

namespace {

// Passes calls on, but runs started reductions in a thread of its own, in order, each after a random delay. (That
// thread's calls go through a group of their own.)
class SlowCommunicator final : public comm::Communicator {
 public:
  SlowCommunicator(comm::RankGroup& group, comm::RankGroup& of_threads, int rank)
      : Communicator(rank, group.world_size(), at::kCPU),
        calls_(comm::make_shared_memory_communicator(group, rank)),
        reductions_(comm::make_shared_memory_communicator(of_threads, rank)),
        delays_(static_cast<unsigned>(rank)),
        thread_([this] { run(); }) {}

  ~SlowCommunicator() override {
    {
      const std::lock_guard lock(mutex_);
      closed_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  std::uint64_t do_start_all_reduce(const comm::CallRecord&, at::TensorList inputs, at::TensorList outputs,
                                    comm::ReduceOp op) override {
    const std::lock_guard lock(mutex_);
    queue_.push_back({inputs.vec(), outputs.vec(), op});
    started.push_back(inputs[0].numel());
    changed_.notify_all();
    return ++numbers_;
  }

  void do_wait(std::uint64_t number) override {
    std::unique_lock lock(mutex_);
    waited = number;
    changed_.wait(lock, [&] { return done >= number; });
  }

  bool do_try_wait(std::uint64_t number) override {
    const std::lock_guard lock(mutex_);
    return done >= number;
  }

  void wait_until_done(std::uint64_t number) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return done >= number; });
  }

  void do_forget_started() override {}
  void do_all_reduce(const comm::CallRecord&, at::TensorList inputs, at::TensorList outputs,
                     comm::ReduceOp op) override {
    calls_->all_reduce(inputs, outputs, op);
  }
  void do_reduce(const comm::CallRecord&, at::TensorList tensors, comm::ReduceOp op, int root) override {
    calls_->reduce(tensors, op, root);
  }
  void do_broadcast(const comm::CallRecord&, at::TensorList tensors, int root) override {
    calls_->broadcast(tensors, root);
  }
  std::vector<at::Tensor> do_all_gather(const comm::CallRecord&, const at::Tensor& tensor) override {
    return calls_->all_gather(tensor);
  }
  at::Tensor do_reduce_scatter(const comm::CallRecord&, const at::Tensor& input, comm::ReduceOp op) override {
    return calls_->reduce_scatter(input, op);
  }
  std::vector<at::Tensor> do_all_to_all(const comm::CallRecord&, at::TensorList inputs) override {
    return calls_->all_to_all(inputs);
  }
  void do_barrier(const comm::CallRecord&) override { calls_->barrier(); }

  // Of this rank's pass: elements of the first tensor of each started reduction, and how far they have come.
  std::vector<std::int64_t> started;
  std::uint64_t done = 0, waited = 0;

 private:
  struct Reduction {
    std::vector<at::Tensor> inputs, outputs;
    comm::ReduceOp op;
  };

  void run() {
    for (;;) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return closed_ || !queue_.empty(); });
      if (queue_.empty()) return;
      const Reduction reduction = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      std::this_thread::sleep_for(std::chrono::microseconds(delays_() % 2000));
      const at::NoGradGuard no_grad;
      std::vector<at::Tensor> from, to;
      for (const auto& tensor : reduction.inputs) from.push_back(tensor.detach().reshape({-1}));
      for (const auto& tensor : reduction.outputs) to.push_back(tensor.detach().view({-1}));
      reductions_->all_reduce(from, to, reduction.op);
      lock.lock();
      done += 1;
      changed_.notify_all();
    }
  }

  std::unique_ptr<comm::Communicator> calls_, reductions_;
  std::mutex mutex_;  // guards what is below, and what is public
  std::condition_variable changed_;
  std::deque<Reduction> queue_;
  std::uint64_t numbers_ = 0;
  bool closed_ = false;
  std::mt19937 delays_;
  std::thread thread_;
};

// Layers of different sizes, from the input: 1, 2, 3, 4 rows.
struct Stack : torch::nn::Module {
  Stack() {
    for (int i = 0; i < 4; ++i)
      layers.push_back(
          register_module(std::to_string(i), torch::nn::Linear(torch::nn::LinearOptions(i + 1, i + 2).bias(false))));
  }
  std::vector<torch::nn::Linear> layers;
};

// Multiplies by 1 and does `then` in backward.
struct InBackward : torch::autograd::Function<InBackward> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const std::function<void()>* then) {
    context->saved_data["then"] = reinterpret_cast<std::int64_t>(then);
    return x.clone();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    (*reinterpret_cast<const std::function<void()>*>(context->saved_data["then"].toInt()))();
    return {gradients[0], at::Tensor()};
  }
};

at::Tensor loss_of(Stack& stack, int rank, int step, const std::function<void()>* before_first = nullptr) {
  at::Tensor x = at::full({2, 1}, 0.3F * static_cast<float>(rank + step + 1));
  for (std::size_t i = 0; i < stack.layers.size(); ++i) {
    x = torch::tanh(stack.layers[i](x));
    if (i == 0 && before_first) x = InBackward::apply(x, before_first);
  }
  return x.pow(2).mean();
}

struct Seen {
  Gradients gradients;
  std::vector<std::vector<std::int64_t>> started;  // by pass
  std::vector<std::uint64_t> waited;
  std::uint64_t done_in_backward = 0;
};

std::vector<Seen> train(int ranks, int steps) {
  CancelToken token;
  comm::RankGroup group(ranks, token), of_threads(ranks, token);
  std::vector<Seen> seen(static_cast<std::size_t>(ranks));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank)
    threads.emplace_back([&, rank] {
      Seen& mine = seen[static_cast<std::size_t>(rank)];
      SlowCommunicator communicator(group, of_threads, rank);
      const auto stack = std::make_shared<Stack>();
      nn::ReducerGroup reducers;
      reducers.add(stack, communicator, group, {.bucket_bytes = 1, .first_bucket_bytes = 1});
      initialise(*stack);
      for (int step = 0; step < steps; ++step) {
        drop_gradients(*stack);
        communicator.started.clear();
        // In the middle of the pass, wait for the end of a reduction that this pass has started.
        const std::uint64_t before = communicator.done;
        const std::function<void()> middle = [&, step] {
          if (step == 0 || ranks == 1) return;
          communicator.wait_until_done(before + 1);
          mine.done_in_backward += 1;
        };
        reducers.begin_pass();
        loss_of(*stack, rank, step, &middle).backward();
        reducers.finish_pass();
        mine.gradients.push_back(gradients_of(*stack));
        mine.started.push_back(communicator.started);
        mine.waited.push_back(communicator.waited);
        descend(*stack, 0.05);
      }
    });
  for (auto& thread : threads) thread.join();
  return seen;
}

}  // namespace

TEST_CASE("reductions run while backward goes on, in one order on all ranks, and all are waited for") {
  const int ranks = GENERATE(1, 2, 3), steps = 6;
  const auto seen = train(ranks, steps);
  const std::vector<std::int64_t> as_gradients_come{20, 12, 6, 2};
  Trial trial;
  trial.make = [] { return std::make_shared<Stack>(); };
  trial.loss = [](torch::nn::Module& module, int rank, int step) {
    return loss_of(static_cast<Stack&>(module), rank, step);
  };
  trial.steps = steps;
  const auto expected = gradients_of_all(ranks, trial);
  for (const Seen& rank : seen) {
    CHECK(difference(rank.gradients, expected) == "");
    if (ranks == 1) continue;  // nothing to reduce
    CHECK(rank.started[0].empty());
    for (std::size_t step = 1; step < rank.started.size(); ++step) {
      CHECK(rank.started[step] == as_gradients_come);
      CHECK(rank.waited[step] == 4 * step);
    }
    CHECK(rank.done_in_backward == static_cast<std::uint64_t>(steps - 1));
  }
}
