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

void load_model(torch::nn::Module& module, const std::string& directory) {
  CheckpointSource source(directory);
  const StoredWeights stored = read_weights(source, "model");
  source.verify();
  prepare_load(stored, module)();
}

}  // namespace tandem::io
