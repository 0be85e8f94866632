#pragma once

#include <string>

#include <torch/nn/module.h>

namespace tandem::models {

/// A network of one input, and one row of scores for each target. All models of this folder are one, so that a program
/// can train whichever it is asked for. Make one on each rank, and give its shared_ptr to `prepare`.
class Net : public torch::nn::Module {
 public:
  /// scores [targets, classes].
  virtual at::Tensor forward(const at::Tensor& inputs) = 0;

  /// The module, as "fc", whose parameters make the scores: what is made anew for other classes. Everything else is the
  /// backbone. This one is the last that has parameters.
  virtual std::string head() const;

  /// The name here of a tensor that a file of weights has as `stored`; empty: it is nothing that a file need have. For
  /// LoadModelOptions::rename. This one changes nothing.
  virtual std::string name_of_stored(const std::string& stored) const { return stored; }
};

}  // namespace tandem::models
