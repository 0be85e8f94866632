// What an Accelerator does about files of weights.
#include "backend/device_scope.h"
#include "runtime/on_all_ranks.h"
#include "runtime/training_parts.h"
#include "tandem/core/error.h"
#include "tandem/runtime/accelerator.h"

namespace tandem {

void Accelerator::save_module(const torch::nn::Module* module, const std::string& directory,
                              const io::ModelFileOptions& options) {
  on_main_for_all(*this, [&] {
    if (!module) throw ConfigError("save_model got an empty module; give it one that was made");
    synchronize(device());  // threads read the weights, on streams of their own
    io::save_model(directory, *module, options);
  });
}

void Accelerator::load_module(const std::shared_ptr<torch::nn::Module>& module, const std::string& directory) {
  const auto reducer = module ? prepared_.reducers.find(*module) : nullptr;
  check_on_all(*this, [&] {
    if (!reducer) throw ConfigError("load_model takes a model that this accelerator has prepared");
  });
  reducer->weights().separate();  // another rank may still compute with them
  on_main_for_all(*this, [&] { reducer->weights().write([&] { io::load_model(directory, *module); }); });
  reducer->update();  // all get rank 0's weights
}

}  // namespace tandem
