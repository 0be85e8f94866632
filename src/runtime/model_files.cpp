// What an Accelerator does about files of weights.
#include "tandem/core/error.h"
#include "tandem/runtime/accelerator.h"

namespace tandem {

// Runs `work` on rank 0 while the others wait. What it throws is a CheckpointError, or ConfigError, on all ranks.
void Accelerator::on_main_for_all(const std::function<void()>& work) {
  const trace::Range range(trace::Event::checkpoint);
  struct Failure {
    bool of_configuration = false;
    std::string text;  // empty: none
  } failure;
  if (is_main()) {
    try {
      work();
    } catch (const Cancelled&) {
      throw;
    } catch (const ConfigError& error) {
      failure = {true, error.what()};
    } catch (const std::exception& error) {
      failure.text = error.what();
    }
  }
  failure = broadcast_object(failure);
  if (failure.text.empty()) return;
  if (failure.of_configuration) throw ConfigError(failure.text);
  throw CheckpointError(failure.text);
}

void Accelerator::save_module(const torch::nn::Module& module, const std::string& directory,
                              const io::ModelFileOptions& options) {
  on_main_for_all([&] { io::save_model(directory, module, options); });
}

void Accelerator::load_module(const std::shared_ptr<torch::nn::Module>& module, const std::string& directory) {
  const auto reducer = reducers_.find(*module);
  if (!reducer) throw ConfigError("load_model takes a model that this accelerator has prepared");
  reducer->weights().unshare();  // another rank may still compute with them
  on_main_for_all([&] { io::load_model(directory, *module); });
  reducer->update();  // all get rank 0's weights
}

}  // namespace tandem
