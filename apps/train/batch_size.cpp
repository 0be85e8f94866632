#include "batch_size.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <fstream>
#include <functional>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/machine.h"
#include "optimizer.h"

namespace train {
namespace {

constexpr const char* kRemedies =
    "; use a smaller network, --mixed-precision bf16 or, where it goes with the model, --checkpoint-activations";

using TriedStep = std::function<at::Tensor(const at::Tensor&, const at::Tensor&)>;

constexpr std::int64_t kFirst = 8;
// Memory that is full ends CPU ranks without a word, and more samples hardly make them faster. Batch norm wants two.
constexpr std::int64_t kFirstOnCpu = 2, kMostOnCpu = 64;
constexpr double kShareOfMemory = 0.8;
constexpr int kWindow = 2;  // micro-batches of an update, of which each but the first needs the same

// As many samples as wanted, which are a few ones again and again: reading others takes time, and no other memory.
class FewSamples : public torch::data::datasets::BatchDataset<FewSamples, Batch> {
 public:
  FewSamples(Batch few, std::size_t size) : few_(std::move(few)), size_(size) {}

  Batch get_batch(c10::ArrayRef<std::size_t> indices) override {
    std::vector<std::int64_t> rows(indices.begin(), indices.end());
    for (std::int64_t& row : rows) row %= few_.data.size(0);
    const at::Tensor chosen = at::tensor(rows, at::kLong);
    return {few_.data.index_select(0, chosen), few_.target.index_select(0, chosen)};
  }

  std::optional<std::size_t> size() const override { return size_; }

 private:
  Batch few_;
  std::size_t size_;
};

std::vector<std::size_t> numbers_below(std::size_t count) {
  std::vector<std::size_t> numbers(count);
  std::iota(numbers.begin(), numbers.end(), 0);
  return numbers;
}

Batch first_samples(const Samples& all) { return all.read(numbers_below(std::min<std::size_t>(all.size(), kFirst))); }

// What the process needs beyond what it had before. Of all CPU ranks, which are its threads.
class CpuMemory {
 public:
  CpuMemory() : before_(status("VmRSS:")) {
    const apps::Machine machine = apps::describe_machine();
    available_ = static_cast<double>(machine.memory_available);
    if (machine.memory_limit) available_ = std::min(available_, static_cast<double>(*machine.memory_limit) - before_);
    std::ofstream("/proc/self/clear_refs") << "5";  // VmHWM begins anew; where it does not, it is too large at worst
  }

  // Most that was needed so far, twice, is there.
  bool has_twice() const { return 2 * (status("VmHWM:") - before_) <= kShareOfMemory * available_; }

 private:
  static double status(const std::string& field) {
    std::ifstream file("/proc/self/status");
    double kilobytes = 0;
    for (std::string word; file >> word;)
      if (word == field) file >> kilobytes;
    return kilobytes * 1024;
  }

  double before_, available_ = 0;  // bytes
};

class Search {
 public:
  Search(const Options& options, const Inputs& inputs)
      : options_(options),
        inputs_(inputs),
        few_(first_samples(inputs.task->train_set())),
        on_cpu_(options.machine.devices.front().is_cpu()) {
    const auto samples = static_cast<std::int64_t>(inputs.task->train_set().size()) / options.logical_ranks();
    const auto whole =
        static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(std::max<std::int64_t>(samples, 1))));
    most_ = on_cpu_ ? std::min(whole, kMostOnCpu) : whole;
    why_most_ =
        most_ < whole ? "more is not tried on CPU ranks" : "twice as many would be more than the training set has";
  }

  // Samples of a rank's batch, and why not more.
  std::pair<std::int64_t, std::string> run() {
    tandem::AcceleratorState launch{options_.machine, options_.launch};
    launch.config.checkpoints = {};
    launch.config.gradient_accumulation_steps = std::min(launch.config.gradient_accumulation_steps, kWindow);
    for (std::int64_t start = std::min(on_cpu_ ? kFirstOnCpu : kFirst, most_); start > 0; start /= 2) {
      ran_out_ = false;
      first_ = start;
      try {
        tandem::launch_on(launch, [&](tandem::Accelerator& accelerator) { grow(accelerator, start); });
      } catch (const tandem::Error&) {
        if (!ran_out_) throw;  // otherwise a rank ran out alone, while others waited for it
      }
      if (found_ > 0) return {found_, found_ < most_ ? "the largest power of two that fits into memory" : why_most_};
    }
    throw tandem::ConfigError(std::string("--batch-size auto: a batch of one sample does not fit into memory") +
                              kRemedies);
  }

 private:
  // On all ranks. What is found stays when a larger size ends the launch.
  void grow(tandem::Accelerator& accelerator, std::int64_t start) {
    for (std::int64_t size = start; size > 0; size = next_) {
      const std::int64_t fits =
          accelerator.find_executable_batch_size(size, [&](std::int64_t tried) { train(accelerator, tried); });
      if (accelerator.is_main()) {
        found_ = fits;
        const bool more = fits == size && 2 * size <= most_ && (!on_cpu_ || memory_.has_twice());
        next_ = more ? 2 * size : 0;
      }
      accelerator.wait_for_everyone();
    }
    accelerator.free_memory();
  }

  void train(tandem::Accelerator& accelerator, std::int64_t size) {
    try {
      make_updates(accelerator, size);
    } catch (const c10::OutOfMemoryError&) {
      ran_out_ = true;
      throw;
    }
  }

  // Two updates as training makes them: the second has the optimizer's state. Graphs are recorded at the fourth.
  void make_updates(tandem::Accelerator& accelerator, std::int64_t size) const {
    const auto net = make_initial_net(options_, inputs_);
    const auto inner = make_optimizer(options_, *net);
    auto model = accelerator.prepare(net);
    auto optimizer = accelerator.prepare(*inner);
    const auto average = make_average(options_, *net);
    const bool split = options_.launch.data_loader.split_batches;
    const std::int64_t ranks = accelerator.logical_ranks(), updates = options_.cuda_graphs == CudaGraphs::on ? 5 : 2;
    const std::int64_t steps = updates * std::min(options_.launch.gradient_accumulation_steps, kWindow);
    auto loader = Samples(FewSamples(few_, static_cast<std::size_t>(steps * size * ranks)))
                      .prepare(accelerator, {.batch_size = size * (split ? ranks : 1)});
    const TriedStep compute = [&](const at::Tensor& inputs, const at::Tensor& targets) {
      const at::Tensor loss = inputs_.task->loss(model(inputs), targets);
      accelerator.backward(loss);
      optimizer.step();
      optimizer.zero_grad();
      return loss.detach();
    };
    std::optional<tandem::CompiledStep<TriedStep>> replayed;
    if (options_.cuda_graphs == CudaGraphs::on) replayed.emplace(accelerator.compile_step(TriedStep(compute)));
    model->train();
    for (auto& [inputs, targets] : loader) {
      auto window = accelerator.accumulate(model);
      if (replayed)
        (*replayed)(inputs, targets);
      else
        compute(inputs, targets);
    }
    if (size <= first_) try_to_judge(model, accelerator.device());
  }

  // As many samples as evaluation takes, whatever size is found.
  void try_to_judge(tandem::nn::Model<Net>& model, c10::Device device) const {
    const torch::NoGradGuard no_grad;
    const auto size = static_cast<std::size_t>(inputs_.task->test_batch());
    model->eval();
    try {
      const Batch batch = tandem::data::to_device(FewSamples(few_, size).get_batch(numbers_below(size)), device);
      inputs_.task->judge(model(batch.data), batch.target);
    } catch (const c10::OutOfMemoryError&) {
      throw tandem::ConfigError("--batch-size auto: the " + std::to_string(size) +
                                " samples that the network is judged by at a time do not fit into memory" + kRemedies);
    }
  }

  const Options& options_;
  const Inputs& inputs_;
  const Batch few_;
  const bool on_cpu_;
  std::int64_t most_ = 1;
  std::string why_most_;
  CpuMemory memory_;
  std::atomic<std::int64_t> found_ = 0;  // the largest size so far that fits; 0: none
  std::atomic<std::int64_t> next_ = 0;   // to try; 0: none
  std::atomic<bool> ran_out_ = false;    // a rank, of memory
  std::int64_t first_ = 0;               // size of the launch; up to it the network is judged, too
};

void record(Options& options, const std::string& name, std::int64_t value) {
  auto& flags = options.flags;
  const auto found = std::find_if(flags.begin(), flags.end(), [&](const auto& flag) { return flag.first == name; });
  if (found == flags.end())
    flags.emplace_back(name, value);
  else
    found->second = value;
}

}  // namespace

std::string find_batch_size(Options& options, const Inputs& inputs) {
  const auto [size, why] = Search(options, inputs).run();
  const std::int64_t global = size * options.logical_ranks();
  options.batch_size = options.launch.data_loader.split_batches ? global : size;
  record(options, "batch-size", options.batch_size);
  record(options, "global-batch-size", global);  // what goes on from a checkpoint, on any number of ranks
  return "batch size " + std::to_string(size) + ": " + why;
}

}  // namespace train
