#include "tandem/io/model_files.h"

#include "io/checkpoint_source.h"
#include "io/model_weights.h"
#include "tandem/io/checkpoint_directory.h"

namespace tandem::io {

void save_model(const torch::nn::Module& module, const std::string& directory, const ModelFileOptions& options) {
  const auto files = weight_files("model", weights_of(module), options.max_shard_bytes, directory);
  CheckpointWriter writer(directory);
  writer.add(files);
  writer.commit({{"kind", "model"}});
}

LoadModelReport load_model(torch::nn::Module& module, const std::string& path, const LoadModelOptions& options) {
  LoadPlan plan = plan_load(read_weights_at(path), module, options);
  plan.copy();
  return std::move(plan.report);
}

}  // namespace tandem::io
