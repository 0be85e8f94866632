// Tandem's side of exchange_test.py.
//   exchange train CASE FROM FIRST STEPS TO   goes on from the checkpoint FROM (-: from none) for the batches FIRST and
//   so
//                                             on, on two ranks, and saves the state
//   exchange pickle FROM TO                   reads a file of torch.save and writes its value again
//   exchange types TO                         writes a tensor of each type that there is, by its name: as `some_bytes`
//   exchange safetensors FROM TO              reads a file of safetensors and writes it again
//   exchange weights FROM TO TYPE BYTES       loads weights into a model of TYPE and saves them, in files of BYTES
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>

#include "tandem/io/pickle_file.h"
#include "tandem/io/safetensors.h"
#include "tandem/tandem.h"

namespace {

using namespace tandem;
namespace F = torch::nn::functional;

torch::nn::Sequential make_net() {
  return torch::nn::Sequential(torch::nn::Linear(6, 8), torch::nn::Tanh(), torch::nn::Linear(8, 3));
}

// The same numbers as in Python.
void set_first_weights(torch::nn::Module& net) {
  const torch::NoGradGuard no_grad;
  for (auto& parameter : net.parameters())
    parameter.copy_(at::cos(at::arange(parameter.numel(), at::kDouble)).mul(0.3).view(parameter.sizes()));
}

at::Tensor batch(std::int64_t number) {
  return at::sin(at::arange(24, at::kDouble).mul(0.1 * static_cast<double>(number + 1))).view({4, 6}).to(at::kFloat);
}

// What a name stands for.
struct Case {
  std::unique_ptr<torch::optim::Optimizer> optimizer;
  std::unique_ptr<optim::LRScheduler> by_updates;
  std::unique_ptr<optim::ReduceLROnPlateau> by_loss;
};

// The first layer, and the second with other options.
template <class Options>
std::vector<torch::optim::OptimizerParamGroup> groups(torch::nn::Module& net, const Options& first,
                                                      const Options& second) {
  const auto all = net.parameters();
  return {torch::optim::OptimizerParamGroup({all[0], all[1]}, std::make_unique<Options>(first)),
          torch::optim::OptimizerParamGroup({all[2], all[3]}, std::make_unique<Options>(second))};
}

Case make_case(const std::string& name, torch::nn::Module& net) {
  using namespace torch::optim;
  Case made;
  if (name == "sgd") {
    const auto options = [](double lr, double decay) {
      return SGDOptions(lr).momentum(0.9).nesterov(true).weight_decay(decay);
    };
    made.optimizer = std::make_unique<SGD>(groups(net, options(0.05, 0), options(0.02, 0.1)), options(0.05, 0));
    made.by_updates =
        std::make_unique<tandem::optim::StepLR>(*made.optimizer, tandem::optim::StepLROptions{.step_size = 3});
  } else if (name == "adam") {
    made.optimizer = std::make_unique<Adam>(net.parameters(), AdamOptions(0.01).amsgrad(true));
    made.by_updates = std::make_unique<tandem::optim::CosineAnnealingLR>(
        *made.optimizer, tandem::optim::CosineAnnealingLROptions{.T_max = 20});
  } else if (name == "adamw") {
    made.optimizer = std::make_unique<AdamW>(
        groups(net, AdamWOptions(0.01).betas({0.8, 0.99}), AdamWOptions(0.02).weight_decay(0.1)), AdamWOptions(0.01));
    made.by_updates = std::make_unique<tandem::optim::OneCycleLR>(
        *made.optimizer, tandem::optim::OneCycleLROptions{.max_lr = {0.02}, .total_steps = 20});
  } else if (name == "adamw-warmup") {
    made.optimizer = std::make_unique<AdamW>(net.parameters(), AdamWOptions(0.01));
    made.by_updates = std::make_unique<tandem::optim::SequentialLR>(
        *made.optimizer,
        tandem::optim::SequentialLROptions{
            .schedulers = {tandem::optim::stage<tandem::optim::LinearLR>({.start_factor = 0.25, .total_iters = 7}),
                           tandem::optim::stage<tandem::optim::ExponentialLR>({.gamma = 0.9})},
            .milestones = {7}});
  } else if (name == "rmsprop") {
    made.optimizer = std::make_unique<RMSprop>(net.parameters(), RMSpropOptions(0.005).momentum(0.5).centered(true));
    made.by_updates = std::make_unique<tandem::optim::MultiStepLR>(
        *made.optimizer, tandem::optim::MultiStepLROptions{.milestones = {2, 8, 8}, .gamma = 0.5});
  } else if (name == "adagrad") {
    made.optimizer = std::make_unique<Adagrad>(net.parameters(), AdagradOptions(0.05).lr_decay(0.01));
    made.by_loss = std::make_unique<tandem::optim::ReduceLROnPlateau>(
        *made.optimizer, tandem::optim::ReduceLROnPlateauOptions{.factor = 0.5, .patience = 0, .threshold = 0.2});
  } else if (name == "adafactor" || name == "muon") {
    const auto all = net.parameters();
    if (name == "adafactor")
      made.optimizer = std::make_unique<tandem::optim::Adafactor>(
          all, tandem::optim::AdafactorOptions(0.05).eps({1e-4, 1e-3}).weight_decay(0.1));
    else  // PyTorch's takes matrices only
      made.optimizer = std::make_unique<tandem::optim::Muon>(
          std::vector<at::Tensor>{all[0], all[2]},
          tandem::optim::MuonOptions(0.02).adjust_lr_fn(tandem::optim::MuonRate::match_rms_adamw));
    made.by_updates =
        std::make_unique<tandem::optim::StepLR>(*made.optimizer, tandem::optim::StepLROptions{.step_size = 3});
  } else {
    throw ConfigError("no case " + name);
  }
  return made;
}

void train_on_rank(Accelerator& accelerator, const std::string& name, const std::string& from, std::int64_t first,
                   std::int64_t steps, const std::string& to) {
  auto net = make_net();
  set_first_weights(*net);
  const Case its = make_case(name, *net);
  auto [model, optimizer] = accelerator.prepare(net, *its.optimizer);
  auto scheduler = its.by_updates ? accelerator.prepare(*its.by_updates) : accelerator.prepare(*its.by_loss);
  if (from != "-") accelerator.load_state(from);
  const at::Tensor classes = at::arange(4, at::kLong).remainder(3);
  for (std::int64_t i = first; i < first + steps; ++i) {
    auto loss = F::cross_entropy(model(batch(i)), classes);
    accelerator.backward(loss);
    optimizer.step();
    optimizer.zero_grad();
    if (its.by_updates)
      scheduler.step();
    else
      scheduler.step(loss.item<double>());
  }
  accelerator.save_state(to);
}

void exchange_weights(const std::string& from, const std::string& to, const std::string& type, std::uint64_t bytes) {
  auto net = make_net();
  if (type == "bf16") net->to(at::kBFloat16);
  io::load_model(*net, from);
  io::save_model(*net, to, {.max_shard_bytes = bytes});
}

void write_file(const std::string& path, const c10::IValue& value) {
  std::ofstream file(path, std::ios::binary);
  io::write_pickle([&](const void* data, std::size_t bytes) { file.write(static_cast<const char*>(data), bytes); },
                   path, value);
}

// Two rows and three columns, every second column of six: bytes 1, 2, 3 and so on.
at::Tensor some_bytes(at::ScalarType type) {
  const auto size = static_cast<std::int64_t>(c10::elementSize(type));
  const at::Tensor bytes = at::arange(1, 12 * size + 1, at::kByte).contiguous();
  return at::empty({0}, type).set_(bytes.storage(), 0, {2, 3}, {6, 2});
}

void write_types(const std::string& to) {
  c10::impl::GenericDict all(c10::AnyType::get(), c10::AnyType::get());
  for (int i = 0; i < static_cast<int>(at::ScalarType::Undefined); ++i)
    if (const auto type = static_cast<at::ScalarType>(i); !c10::isQIntType(type))
      all.insert(c10::toString(type), some_bytes(type));
  all.insert("bytes", "no \xff text");
  all.insert("device", c10::Device("cuda:1"));
  all.insert("complex", c10::complex<double>(1, -2));
  all.insert("conjugate", at::complex(at::ones({2}), at::ones({2})).conj());
  write_file(to, all);
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  try {
    if (words.size() == 6 && words[0] == "train") {
      LaunchConfig config{.cpu = 2};
      if (words[1] == "fp16") config.mixed_precision = Precision::fp16;
      const std::string name = words[1] == "fp16" ? "adam" : words[1];
      launch(config, [&](Accelerator& accelerator) {
        train_on_rank(accelerator, name, words[2], std::atoll(words[3].c_str()), std::atoll(words[4].c_str()),
                      words[5]);
      });
    } else if (words.size() == 5 && words[0] == "weights") {
      exchange_weights(words[1], words[2], words[3], static_cast<std::uint64_t>(std::atoll(words[4].c_str())));
    } else if (words.size() == 3 && words[0] == "pickle") {
      write_file(words[2], io::read_pickle(words[1]));
    } else if (words.size() == 2 && words[0] == "types") {
      write_types(words[1]);
    } else if (words.size() == 3 && words[0] == "safetensors") {
      io::save_safetensors(words[2], io::load_safetensors(words[1]));
    } else {
      return 2;
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "exchange: %s\n", error.what());
    return 1;
  }
}
