// Fine-tunes a network that was trained in Python (make_weights.py): what it has learned to see stays frozen, and it
// gets a new last layer for another task. Python can go on with what is saved. Usage: finetune WEIGHTS OUT [MNIST]
#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>

#include <tandem/data/data_loader.h>
#include <tandem/data/mnist.h>
#include <tandem/io/model_files.h>
#include <tandem/runtime/launch.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>

namespace {

namespace nn = torch::nn;
using tandem::data::MnistDataset;

// Names and order are those of the class in Python: backbone.0.weight, …, head.bias.
struct NetImpl : nn::Module {
  explicit NetImpl(std::int64_t classes)
      : backbone(register_module(
            "backbone", nn::Sequential(nn::Conv2d(nn::Conv2dOptions(1, 8, 3).stride(2).padding(1)), nn::ReLU(),
                                       nn::Conv2d(nn::Conv2dOptions(8, 16, 3).stride(2).padding(1)), nn::ReLU(),
                                       nn::Flatten(), nn::Linear(16 * 7 * 7, 64), nn::ReLU()))),
        head(register_module("head", nn::Linear(64, classes))) {}

  torch::Tensor forward(const torch::Tensor& images) { return head(backbone->forward(images)); }

  nn::Sequential backbone;
  nn::Linear head;
};
TORCH_MODULE(Net);

// Python's network for two classes, with a new head for ten.
Net pretrained(const std::string& weights) {
  Net net(2);
  tandem::io::load_model(*net, weights);  // throws when a name or a size does not fit
  for (auto& parameter : net->backbone->parameters()) parameter.set_requires_grad(false);
  net->head = net->replace_module("head", nn::Linear(64, 10));
  return net;
}

double accuracy(tandem::Accelerator& accelerator, const tandem::nn::Model<NetImpl>& model,
                const tandem::data::PreparedDataLoader<torch::data::Example<>>& batches) {
  const torch::NoGradGuard no_grad;
  std::int64_t correct = 0;
  for (auto& [images, labels] : batches)
    correct += accelerator.gather_for_metrics(model(images).argmax(1).eq(labels)).sum().item<std::int64_t>();
  return 100.0 * static_cast<double>(correct) / static_cast<double>(batches.total_dataset_length());
}

void finetune(tandem::Accelerator& accelerator, const std::string& weights, const std::string& out,
              const MnistDataset& train_set, const MnistDataset& test_set) {
  Net net = pretrained(weights);
  torch::optim::AdamW adamw(net->head->parameters(), 5e-3);  // what is frozen needs none
  tandem::data::DataLoader train_data(train_set, {.batch_size = 64, .shuffle = true});
  tandem::data::DataLoader test_data(test_set, {.batch_size = 500});
  auto [model, optimizer, train_batches, test_batches] = accelerator.prepare(net, adamw, train_data, test_data);

  const double before = accuracy(accelerator, model, test_batches);
  for (auto& [images, labels] : train_batches) {
    auto window = accelerator.accumulate(model);
    accelerator.backward(nn::functional::cross_entropy(model(images), labels));
    optimizer.step();
    optimizer.zero_grad();
  }
  const double after = accuracy(accelerator, model, test_batches);

  accelerator.print("test accuracy ", before, " % before, ", after, " % after");
  accelerator.save_model(model, out);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: finetune WEIGHTS OUT [MNIST]\n");
    return 2;
  }
  const std::string weights = argv[1], out = argv[2], mnist = argc > 3 ? argv[3] : "data/mnist";
  try {
    const MnistDataset train_set(mnist);
    const MnistDataset test_set(mnist, {.split = tandem::data::MnistSplit::test});
    tandem::launch({.cpu = 2},
                   [&](tandem::Accelerator& accelerator) { finetune(accelerator, weights, out, train_set, test_set); });
  } catch (const std::exception& error) {
    std::fprintf(stderr, "finetune: %s\n", error.what());
    return 1;
  }
}
