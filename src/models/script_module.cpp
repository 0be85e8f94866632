#include "tandem/models/script_module.h"

#include <filesystem>

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>

#include "comm/error_text.h"
#include "tandem/core/error.h"

namespace tandem::models {

// The script's is another tensor in the same memory, so that a graph that keeps it is none the wiser when the script
// assigns a new one, which the tree's takes over.
struct ScriptModule::Buffer {
  torch::jit::Module owner;
  std::string name;
  at::Tensor tensor;          // of the tree
  mutable at::Tensor lent{};  // of the script
};

namespace {

// What is of a script's submodule.
std::shared_ptr<torch::nn::Module> new_part() { return std::make_shared<torch::nn::Module>(); }

template <class Take>
void add_parts(torch::nn::Module& to, const torch::jit::Module& script, const Take& take_buffer) {
  for (const auto& item : script.named_parameters(/*recurse=*/false))
    to.register_parameter(item.name, item.value, item.value.requires_grad());
  for (const auto& item : script.named_buffers(/*recurse=*/false))
    take_buffer(script, item.name, to.register_buffer(item.name, item.value));
  for (const auto& item : script.named_children())
    add_parts(*to.register_module(item.name, new_part()), item.value, take_buffer);
}

}  // namespace

ScriptModule::ScriptModule(const torch::jit::Module& script)
    : script_(std::make_shared<torch::jit::Module>(script)), buffers_(std::make_shared<std::vector<Buffer>>()) {
  if (!script_->find_method("forward")) throw ConfigError("the TorchScript module has no forward, which is trained");
  add_parts(*this, *script_, [&](const torch::jit::Module& owner, const std::string& name, const at::Tensor& tensor) {
    buffers_->push_back({owner, name, tensor});
  });
  torch::nn::Module::train(!script_->hasattr("training") || script_->is_training());
}

void ScriptModule::train(bool on) {
  torch::nn::Module::train(on);
  script_->train(on);
}

void ScriptModule::lend_buffers() const {
  for (const Buffer& buffer : *buffers_) {
    buffer.lent = buffer.tensor.tensor_data();
    torch::jit::Module(buffer.owner).setattr(buffer.name, buffer.lent);
  }
}

at::Tensor ScriptModule::run(const std::vector<at::Tensor>& inputs) {
  lend_buffers();
  const c10::IValue result = script_->forward(std::vector<c10::IValue>(inputs.begin(), inputs.end()));
  for (Buffer& buffer : *buffers_) {
    const at::Tensor now = buffer.owner.attr(buffer.name).toTensor();
    if (!now.is_same(buffer.lent)) buffer.tensor.set_data(now.detach());
  }
  if (!result.isTensor())
    throw ConfigError("the TorchScript module's forward gives a " + result.tagKind() +
                      "; script one that gives one tensor, the scores");
  return result.toTensor();
}

void ScriptModule::save(std::ostream& to) const {
  const at::NoGradGuard no_grad;
  lend_buffers();
  // Weights of their own: these may be parts of a larger memory, which would be written for each.
  const torch::jit::Module copy = script_->deepcopy(at::Device(at::kCPU));
  std::vector<bool> trained;
  for (const at::Tensor& parameter : script_->parameters()) trained.push_back(parameter.requires_grad());
  std::size_t i = 0;
  for (at::Tensor parameter : copy.parameters()) parameter.set_requires_grad(trained[i++]);
  copy.save(to);
}

std::shared_ptr<ScriptModule> load_script(const std::string& path) {
  // LibTorch would say it with the number of an error and the name of a function.
  if (std::error_code error; !std::filesystem::is_regular_file(path, error))
    throw CheckpointError(path + (std::filesystem::exists(path, error) ? ": is no file" : ": does not exist"));
  torch::jit::Module script;
  try {
    script = torch::jit::load(path, at::Device(at::kCPU));
  } catch (const std::exception&) {
    const std::string problem = text_of(std::current_exception());  // the first sentence says it
    throw CheckpointError(path + ": is no TorchScript module, or damaged: " + problem.substr(0, problem.find(". ")));
  }
  return std::make_shared<ScriptModule>(script);
}

}  // namespace tandem::models
