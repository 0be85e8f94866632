// What training does about files of weights.
#include "tandem/io/model_files.h"
#include "backend/device_scope.h"
#include "checkpoint/on_all_ranks.h"
#include "runtime/rank_training.h"
#include "tandem/core/error.h"

namespace tandem {

void RankTraining::save_model(const torch::nn::Module* module, const std::string& directory,
                              const io::ModelFileOptions& options) const {
  on_main_for_all(*context.group, context.rank, [&] {
    if (!module) throw ConfigError("save_model got an empty module; give it one that was made");
    synchronize(context.device());  // threads read the weights, on streams of their own
    io::save_model(*module, directory, options);
  });
}

void RankTraining::load_model(const std::shared_ptr<torch::nn::Module>& module, const std::string& directory) {
  const auto reducer = module ? parts.reducers.find(*module) : nullptr;
  check_on_all(*context.group, context.rank, [&] {
    if (!reducer) throw ConfigError("load_model takes a model that this accelerator has prepared");
  });
  reducer->weights().separate();  // another rank may still compute with them
  on_main_for_all(*context.group, context.rank,
                  [&] { reducer->weights().write([&] { io::load_model(*module, directory); }); });
  reducer->update();  // all get rank 0's weights
}

}  // namespace tandem
