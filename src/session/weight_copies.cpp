#include "session/weight_copies.h"

#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>

#include "backend/rank_memory.h"
#include "io/model_weights.h"

namespace tandem {

io::NamedTensors copies_on_cpu(const torch::nn::Module& module) {
  const c10::InferenceMode normal(false);  // whatever the body is doing
  const at::NoGradGuard no_grad;
  const OtherMemoryScope memory;
  io::NamedTensors weights = io::weights_of(module);
  for (auto& [name, tensor] : weights) tensor = tensor.detach().to(at::kCPU, /*non_blocking=*/false, /*copy=*/true);
  return weights;
}

void give_copy(const std::shared_ptr<const ModelSnapshot>& weights, const SessionRun::TakeSnapshot& take,
               std::exception_ptr error) {
  std::shared_ptr<ModelSnapshot> copy;
  if (weights) try {
      copy = std::make_shared<ModelSnapshot>(*weights);
      for (io::NamedTensors& model : copy->models)
        for (auto& [name, tensor] : model) tensor = tensor.clone();
    } catch (...) {  // for lack of memory
      copy = nullptr;
      error = std::current_exception();
    }
  take(copy, copy ? nullptr : error);
}

}  // namespace tandem
