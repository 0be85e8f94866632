#pragma once

namespace tandem {

/// Options of a backward pass, as torch::Tensor::backward has them.
struct BackwardOptions {
  bool retain_graph = false;  ///< another backward through the same graph follows
  bool create_graph = false;  ///< the gradients are to be differentiated themselves
};

}  // namespace tandem
