// What an Accelerator does about files of weights.
#include "tandem/core/error.h"
#include "tandem/runtime/accelerator.h"

namespace tandem {

// Throws on all ranks what `check` throws on any, as a CheckpointError or ConfigError. Collective.
void Accelerator::check_on_all(const std::function<void()>& check) {
  struct Failure {
    bool of_configuration = false;
    std::string text;  // empty: none
  } mine;
  try {
    check();
  } catch (const Cancelled&) {
    throw;
  } catch (const ConfigError& error) {
    mine = {true, error.what()};
  } catch (const std::exception& error) {
    mine.text = error.what();
  }
  for (const Failure& failure : gather_objects(mine)) {
    if (failure.of_configuration) throw ConfigError(failure.text);
    if (!failure.text.empty()) throw CheckpointError(failure.text);
  }
}

// Runs `work` on rank 0 while the others wait.
void Accelerator::on_main_for_all(const std::function<void()>& work) {
  const trace::Range range(trace::Event::checkpoint);
  check_on_all([&] {
    if (is_main()) work();
  });
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
