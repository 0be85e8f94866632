// What an Accelerator does to save the state of a training.
#include <filesystem>

#include <c10/core/impl/VirtualGuardImpl.h>

#include "io/ivalue_tensors.h"
#include "io/model_weights.h"
#include "runtime/state_file.h"
#include "runtime/state_saver.h"
#include "tandem/core/error.h"
#include "tandem/io/checkpoint_series.h"
#include "tandem/io/pickle_file.h"
#include "tandem/optim/state_dict.h"
#include "tandem/runtime/accelerator.h"

namespace tandem {
namespace {

io::NewFile pickle_file(const std::string& directory, const std::string& name, const c10::IValue& value) {
  return {name, [shown = directory + "/" + name, value](const io::WriteBytes& write) {
            io::write_pickle(write, shown, value);
          }};
}

io::NewFile text_file(const std::string& name, const std::string& text) {
  return {name, [text](const io::WriteBytes& write) { write(text.data(), text.size()); }};
}

}  // namespace

template <class Wrapper>
std::vector<Wrapper> Accelerator::alive(const std::vector<optim::Observer<Wrapper>>& observers) {
  std::vector<Wrapper> wrappers;
  for (const auto& observer : observers)
    if (auto wrapper = observer.lock()) wrappers.push_back(*wrapper);
  return wrappers;
}
template std::vector<optim::AcceleratedOptimizer> Accelerator::alive(
    const std::vector<optim::Observer<optim::AcceleratedOptimizer>>&);
template std::vector<optim::AcceleratedScheduler> Accelerator::alive(
    const std::vector<optim::Observer<optim::AcceleratedScheduler>>&);

std::vector<std::shared_ptr<data::LoaderPosition>> Accelerator::alive_loaders() const {
  std::vector<std::shared_ptr<data::LoaderPosition>> loaders;
  for (const auto& loader : loaders_)
    if (auto shared = loader.lock()) loaders.push_back(std::move(shared));
  return loaders;
}

void Accelerator::register_state_object(StateObject object) { state_objects_.push_back(std::move(object)); }

void Accelerator::register_state_hooks(StateHooks hooks) { state_hooks_.push_back(std::move(hooks)); }

StateSaver& Accelerator::saver() {
  if (!saver_) saver_ = std::make_shared<StateSaver>();
  return *saver_;
}

void Accelerator::finish_saving() {
  if (saver_) saver_->wait();
}

void Accelerator::wait_for_saves() {
  on_main_for_all([this] { finish_saving(); });
}

void Accelerator::check_between_updates() const {
  const GradientState& state = context_.gradients;
  if (state.window_length > 0 && !(state.inside_window && state.sync_gradients))
    throw ConfigError(
        "the accumulation window is open, and its gradients are no part of a state: save or load it in or "
        "after the micro-batch that closes the window (sync_gradients())");
  if (reductions_in_join_ || context_.gradients.local_sgd)
    throw ConfigError("within join_uneven_inputs and local_sgd ranks differ: save or load the state outside");
}

// The work that this rank has enqueued is done afterwards.
void Accelerator::finish_device_work() const {
  if (device().is_cpu()) return;
  const c10::impl::VirtualGuardImpl guard(device().type());
  guard.synchronizeStream(guard.getStream(device()));
}

GeneratorStates Accelerator::generator_states() {
  GeneratorStates states{.cpu = bytes_of(context_.generators.cpu.get_state()), .cuda = {}};
  if (const at::Generator* cuda = cuda_generator(); cuda && cuda->defined()) states.cuda = bytes_of(cuda->get_state());
  return states;
}

// Rank 0's, and the generators of all.
StateFile Accelerator::describe_state(const std::vector<GeneratorStates>& generators) const {
  StateFile state;
  state.models = static_cast<std::int64_t>(reducers_.size());
  for (const auto& optimizer : alive(optimizers_))
    state.optimizers.push_back({optimizer.updates(), optimizer.step_was_skipped()});
  for (const auto& scheduler : alive(schedulers_)) {
    if (!scheduler.inner() && scheduler.goes_by_metric())
      throw ConfigError(
          "torch::optim::ReduceLROnPlateauScheduler does not tell its state, so that it cannot be saved; "
          "use tandem::optim::ReduceLROnPlateau");
    state.scheduler_steps.push_back(scheduler.inner() ? -1 : scheduler.updates());
  }
  state.schedulers = static_cast<std::int64_t>(state.scheduler_steps.size());
  for (const auto& loader : alive_loaders()) state.loaders.push_back(loader->state());
  state.scaler = scaler_.has_value();
  state.objects = static_cast<std::int64_t>(state_objects_.size());
  state.generators = generators;
  state.micro_batches = context_.gradients.step;
  return state;
}

optim::GroupValues Accelerator::group_values(const torch::optim::Optimizer& optimizer) const {
  optim::GroupValues values(optimizer.param_groups().size());
  for (const auto& scheduler : alive(schedulers_))
    if (scheduler.inner() && &scheduler.inner()->optimizer() == &optimizer)
      for (std::size_t group = 0; group < values.size(); ++group)
        values[group].merge(scheduler.inner()->group_values(group));
  return values;
}

// The files of a checkpoint, of tensors that `keep` gives for those of the state.
std::vector<io::NewFile> Accelerator::state_files(const std::string& directory, StateFile state,
                                                  std::uint64_t max_shard_bytes,
                                                  const std::function<at::Tensor(const at::Tensor&)>& keep) const {
  std::vector<io::NewFile> files;
  const auto add_pickle = [&](const std::string& name, const c10::IValue& value) {
    files.push_back(pickle_file(directory, name, io::map_tensors(value, keep)));
  };
  std::size_t index = 0;
  for (const auto& optimizer : alive(optimizers_))  // first, because they take longest
    add_pickle(numbered("optimizer", index++) + ".bin",
               optim::state_dict(optimizer.inner(), group_values(optimizer.inner())));
  index = 0;
  for (const auto& reducer : reducers_) {
    io::NamedTensors weights = io::weights_of(*reducer->module());
    for (auto& [name, tensor] : weights) tensor = keep(tensor);
    for (auto& file : io::weight_files(numbered("model", index++), weights, max_shard_bytes, directory))
      files.push_back(std::move(file));
  }
  index = 0;
  for (const auto& scheduler : alive(schedulers_)) {
    if (scheduler.inner())
      add_pickle(numbered("scheduler", index) + ".bin", optim::state_dict(scheduler.inner()->state()));
    index += 1;
  }
  if (scaler_) add_pickle("scaler.pt", optim::state_dict(scaler_->state()));
  index = 0;
  for (const StateObject& object : state_objects_)
    add_pickle("custom_checkpoint_" + std::to_string(index++) + ".pkl", object.save());
  for (const StateHooks& hooks : state_hooks_) {
    if (!hooks.save) continue;
    for (const auto& [name, bytes] : hooks.save()) {
      state.hook_files.push_back(name);
      files.push_back(text_file(name, bytes));
    }
  }
  files.push_back(text_file("tandem_state.json", to_text(state)));
  return files;
}

std::string Accelerator::save_state(const std::string& directory, const SaveStateOptions& options) {
  const CheckpointConfiguration& series = context_.state->config.checkpoints;
  if (directory.empty() && series.directory.empty())
    throw ConfigError("save_state without a directory needs LaunchConfig::checkpoints.directory");
  check_between_updates();
  finish_device_work();
  const auto generators = gather_objects(generator_states());  // the work of all ranks is done
  StateSaver::Job job;                                         // on rank 0; without a directory: left out
  on_main_for_all([&] {
    if (options.background && options.when_busy == WhenBusy::skip && saver().busy()) return;
    saver().wait();
    saver().snapshot().begin();
    const auto keep = [&](const at::Tensor& tensor) {
      return options.background ? saver().snapshot().add(tensor) : tensor;
    };
    const std::string path = directory.empty() ? io::next_checkpoint(series.directory) : directory;
    const StateFile state = describe_state(generators);
    job.files = state_files(path, state, options.max_shard_bytes, keep);
    job.info = {{"kind", "state"},
                {"updates", std::to_string(state.optimizers.empty() ? 0 : state.optimizers[0].updates)},
                {"ranks", std::to_string(world_size())}};
    job.in_series = directory.empty();
    job.total_limit = series.total_limit;
    job.directory = path;
    if (!options.background) StateSaver::write(job);
  });
  const std::string path = broadcast_object(job.directory);
  if (!options.background || path.empty()) return path;
  broadcast_object(saver_)->snapshot().copy_part(rank(), context_.state->devices);
  finish_device_work();
  wait_for_everyone();
  if (!is_main()) return path;
  saver().snapshot().release_originals();
  saver().start(std::move(job));
  return path;
}

}  // namespace tandem
