#include "training.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <utility>

#include <tandem/data/mnist.h>
#include <tandem/session/session.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

namespace {

constexpr auto kPixels = tandem::data::MnistNormalize::none;  // 0 to 1
constexpr int kJudged = 1000;  // enough to see progress by, and few enough for the window's thread
constexpr int kShown = 24;
constexpr int kCheckInterval = 50;  // steps: a look at the loss makes a GPU's rank wait for it

struct NetImpl : torch::nn::Module {
  explicit NetImpl(int hidden) {
    first = register_module("first", torch::nn::Linear(28 * 28, hidden));
    last = register_module("last", torch::nn::Linear(hidden, 10));
  }
  at::Tensor forward(const at::Tensor& images) { return last(first(images.flatten(1)).relu()); }

  torch::nn::Linear first{nullptr}, last{nullptr};
};
TORCH_MODULE(Net);

// What a rank throws ends the training on all of them, and comes to the window as an event.
void check_loss(double loss) {
  if (!(loss < 100))  // also for NaN
    throw std::runtime_error(
        "the training diverges: its loss is above 100, where that of guessing is 2.3. Use a smaller learning rate");
}

// The first digits of the test set.
torch::data::Example<> read_judged(const std::string& folder) {
  auto digits = tandem::data::mnist(folder, {tandem::data::MnistSplit::test, kPixels, kJudged});
  std::vector<std::size_t> all(digits.size().value());
  std::iota(all.begin(), all.end(), 0);
  return digits.get_batch(all);
}

}  // namespace

struct Training::Data {
  tandem::data::MnistDataset train;
  torch::data::Example<> judged;
};

Training::Training(Settings settings) : settings_(std::move(settings)) {}
Training::~Training() = default;

tandem::LaunchConfig Training::launch_config() const {
  tandem::LaunchConfig config{.seed = settings_.seed};
  (settings_.on_gpus ? config.gpus : config.cpu) = settings_.ranks;
  return config;
}

// Read by the rank that comes first, and not by the window: that takes a while, and what it throws is what the training
// throws.
const Training::Data& Training::data() {
  std::call_once(loaded_, [this] {
    const std::string& folder = settings_.data_folder;
    data_ = std::make_unique<Data>(Data{tandem::data::mnist(folder, {.normalize = kPixels}), read_judged(folder)});
  });
  return *data_;
}

void Training::run(tandem::Accelerator& accelerator) {
  Net net(settings_.hidden);
  torch::optim::SGD sgd(net->parameters(), torch::optim::SGDOptions(settings_.learning_rate).momentum(0.9));
  tandem::data::DataLoader digits(data().train, {.batch_size = settings_.batch_size, .shuffle = true});
  auto [model, optimizer, batches] = accelerator.prepare(net, sgd, digits);

  accelerator.set_total_steps(settings_.epochs * batches.len());  // for the time that is left
  std::int64_t steps = 0;
  for (int epoch = 0; epoch < settings_.epochs && !accelerator.stop_requested(); ++epoch)
    for (auto& [images, labels] : batches) {
      const auto window = accelerator.accumulate(model);
      const at::Tensor loss = torch::nn::functional::cross_entropy(model(images), labels);
      if (++steps % kCheckInterval == 0) check_loss(loss.item<double>());
      accelerator.backward(loss);
      optimizer.step();
      optimizer.zero_grad();
    }
}

Preview Training::preview(const tandem::ModelSnapshot& weights) const {
  const torch::NoGradGuard no_grad;
  Net net(settings_.hidden);
  weights.load_into(*net);
  const auto& [images, labels] = data_->judged;
  const auto [confidence, guessed] = net(images).softmax(1).max(1);

  const auto judged = static_cast<int>(labels.size(0));
  Preview preview{.step = weights.step, .judged = judged, .accuracy = guessed.eq(labels).sum().item<double>() / judged};
  const at::Tensor ink = images.flatten(1).mul(255).to(at::kByte).contiguous();
  for (int i = 0; i < std::min(kShown, judged); ++i) {
    Guess guess{.ink = {},
                .digit = labels[i].item<int>(),
                .guessed = guessed[i].item<int>(),
                .confidence = confidence[i].item<double>()};
    std::copy_n(ink[i].const_data_ptr<std::uint8_t>(), guess.ink.size(), guess.ink.begin());
    preview.guesses.push_back(guess);
  }
  return preview;
}
