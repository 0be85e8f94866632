#pragma once

#include <concepts>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "tandem/models/net.h"

namespace torch::jit {
struct Module;
}

namespace tandem::models {

/// A TorchScript module as a torch::nn::Module: a thin adapter, with a tree of the script's submodules, so that
/// parameters and buffers have the names that they have in Python. `prepare` makes one of a torch::jit::Module.
///
/// Both have the same tensors. A buffer that the script assigns anew in forward (`self.mean = 0.9 * self.mean + …`) is
/// the tree's afterwards. What else a script keeps, such as numbers, is its own: it is in what `save` writes, but not
/// in checkpoints. A script belongs to one rank: load it on each.
///
/// LibTorch calls TorchScript deprecated; this is for models that exist.
class ScriptModule : public Net {
 public:
  /// Shares `script`, and is in training mode where that is. Throws ConfigError when it has no forward.
  explicit ScriptModule(const torch::jit::Module& script);

  /// The script's forward. Throws what it throws, and ConfigError when it does not give one tensor.
  at::Tensor forward(const at::Tensor& inputs) override { return run({inputs}); }

  /// The same of several inputs.
  template <std::same_as<at::Tensor>... More>
  requires(sizeof...(More) > 0) at::Tensor forward(const at::Tensor& inputs, const More&... more) {
    return run({inputs, more...});
  }

  /// Puts the script into training mode too, or out of it.
  void train(bool on = true) override;

  /// Writes the script with its weights, on the CPU, as a file that torch::jit::load opens, and Python's.
  void save(std::ostream& to) const;

  /// What it adapts.
  const torch::jit::Module& script() const { return *script_; }

 private:
  struct Buffer;

  at::Tensor run(const std::vector<at::Tensor>& inputs);
  void lend_buffers() const;

  std::shared_ptr<torch::jit::Module> script_;
  std::shared_ptr<std::vector<Buffer>> buffers_;
};

/// Loads a file of torch.jit.save. Throws CheckpointError when it is none.
std::shared_ptr<ScriptModule> load_script(const std::string& path);

}  // namespace tandem::models
