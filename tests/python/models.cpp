// Runs Tandem's networks, for models_test.py, which has the same ones of Python's, and scripts for script_test.py.
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>
#include <torch/nn/functional/loss.h>
#include <torch/optim/sgd.h>

#include "tandem/tandem.h"

using namespace tandem;

namespace {

// In sizes that take no time, but for the ResNets; models_test.py has the same.
std::shared_ptr<models::Net> make_small(const std::string& name) {
  if (name == "resnet18") return models::resnet18({.classes = 7});
  if (name == "resnet50") return models::resnet50({.classes = 7});
  if (name == "vit")
    return std::make_shared<models::VisionTransformer>(models::VisionTransformerOptions{
        .classes = 7, .image_size = 48, .patch_size = 16, .layers = 3, .width = 40, .heads = 5, .hidden = 72});
  if (name == "gpt2")
    return std::make_shared<models::Gpt2>(
        models::Gpt2Options{.vocabulary = 101, .positions = 24, .layers = 3, .width = 40, .heads = 5, .dropout = 0.0});
  throw ConfigError("no network " + name);
}

std::shared_ptr<models::Net> make_whole(const std::string& name) {
  if (name == "vit") return models::vit_b_16();
  if (name == "gpt2") return std::make_shared<models::Gpt2>();
  if (name == "resnet18") return models::resnet18();
  if (name == "resnet34") return models::resnet34();
  return models::resnet50();
}

// A line for each parameter and buffer: its name and sizes.
void describe(const std::string& name) {
  const auto net = make_whole(name);
  const auto line = [](const auto& item) {
    std::printf("%s %s\n", item.key().c_str(), c10::str(item.value().sizes()).c_str());
  };
  for (const auto& item : net->named_parameters()) line(item);
  for (const auto& item : net->named_buffers()) line(item);
}

void add_all(io::NamedTensors& results, const std::string& prefix,
             const torch::OrderedDict<std::string, at::Tensor>& of) {
  for (const auto& item : of) results.emplace_back(prefix + item.key(), item.value());
}

// Inputs and targets.
std::pair<at::Tensor, at::Tensor> read_samples(const std::string& path) {
  const auto tensors = io::load_safetensors(path);
  const bool inputs_first = tensors.at(0).first == "inputs";
  return {tensors.at(inputs_first ? 0 : 1).second, tensors.at(inputs_first ? 1 : 0).second};
}

// Scores in evaluation mode, then in training mode, and the buffers afterwards; and with other weights of the same
// numbers in float64, in which rounding does not grow over the layers, the gradients of the loss.
void run(const std::string& name, const std::string& weights, const std::string& batch, const std::string& to) {
  const auto [inputs, targets] = read_samples(batch);
  const auto net = make_small(name), exact = make_small(name);
  io::load_model(*net, weights);
  net->eval();
  io::NamedTensors results{{"eval", net->forward(inputs).detach()}};
  net->train();
  results.emplace_back("train", net->forward(inputs).detach());
  add_all(results, "buffer.", net->named_buffers());
  io::load_model(*exact, weights);
  exact->to(at::kDouble);
  const at::Tensor scores = exact->forward(inputs.is_floating_point() ? inputs.to(at::kDouble) : inputs);
  torch::nn::functional::cross_entropy(scores, targets.view(-1)).backward();
  for (const auto& item : exact->named_parameters()) results.emplace_back("grad." + item.key(), item.value().grad());
  io::save_safetensors(to, results);
}

// Weights as a seed makes them.
void initialise(const std::string& name, std::uint64_t seed, const std::string& to) {
  torch::manual_seed(seed);
  const auto net = make_small(name);
  io::NamedTensors weights;
  add_all(weights, "", net->named_parameters());
  io::save_safetensors(to, weights);
}

// Trains a script for a step a batch, as script_test's other side does, and saves it in both ways.
void train_script(const std::string& from, const std::string& data, const std::string& to, const std::string& weights) {
  const auto samples = read_samples(data);
  const auto inputs = samples.first.split(8), targets = samples.second.split(8);
  launch({.cpu = 1}, [&](Accelerator& accelerator) {
    auto script = torch::jit::load(from);
    PreparedModel<torch::jit::Module> model = accelerator.prepare(script);
    torch::optim::SGD sgd(model.parameters(), torch::optim::SGDOptions(0.05).momentum(0.9));
    auto optimizer = accelerator.prepare(sgd);
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const auto window = accelerator.accumulate(model);
      accelerator.backward(torch::nn::functional::cross_entropy(model(inputs[i]), targets[i]));
      optimizer.step();
      optimizer.zero_grad();
    }
    std::ofstream file(to, std::ios::binary);
    model->save(file);
    accelerator.save_model(model, weights);
  });
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  try {
    if (words.size() == 2 && words[0] == "describe")
      describe(words[1]);
    else if (words.size() == 5 && words[0] == "run")
      run(words[1], words[2], words[3], words[4]);
    else if (words.size() == 4 && words[0] == "initialise")
      initialise(words[1], std::stoull(words[2]), words[3]);
    else if (words.size() == 5 && words[0] == "script")
      train_script(words[1], words[2], words[3], words[4]);
    else
      return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "models: %s\n", error.what());
    return 1;
  }
}
