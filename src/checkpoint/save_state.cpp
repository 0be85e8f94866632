// How the state of a training is saved.
#include <filesystem>
#include <map>
#include <utility>

#include "backend/device_scope.h"
#include "checkpoint/checkpoints.h"
#include "checkpoint/on_all_ranks.h"
#include "data/loader_base.h"
#include "io/model_weights.h"
#include "io/pickle_archive.h"
#include "tandem/comm/detail/objects.h"
#include "tandem/core/error.h"

namespace tandem {
namespace {

// What cannot be in it is found out now, before anything is written. `keep` as in state_files.
io::NewFile pickle_file(const std::string& directory, const std::string& name, const c10::IValue& value,
                        const std::function<at::Tensor(const at::Tensor&)>& keep) {
  const std::string shown = directory + "/" + name;
  io::Pickle pickle = io::pickle_of(value, shown);
  for (auto& [tensor, strides] : pickle.storages) tensor = keep(tensor);
  return {name, [shown, pickle = std::move(pickle)](const io::WriteBytes& write) {
            io::write_archive(write, shown, pickle);
          }};
}

GeneratorStates states_of(rng::RankGenerators& generators, c10::Device device) {
  GeneratorStates states{.cpu = bytes_of(generators.cpu.get_state()), .cuda = {}};
  if (const at::Generator* cuda = generators.of_gpu(device); cuda && cuda->defined())
    states.cuda = bytes_of(cuda->get_state());
  return states;
}

io::NewFile text_file(const std::string& name, const std::string& text) {
  return {name, [text](const io::WriteBytes& write) { write(text.data(), text.size()); }};
}

}  // namespace

void Checkpoints::check_on_all(const std::function<void()>& check) const {
  tandem::check_on_all(rank_.group, rank_.rank, check);
}

void Checkpoints::on_main_for_all(const std::function<void()>& work) const {
  tandem::on_main_for_all(rank_.group, rank_.rank, work);
}

StateSaver& Checkpoints::saver() {
  if (!saver_) saver_ = std::make_shared<StateSaver>();
  return *saver_;
}

std::shared_ptr<io::CheckpointSeries> Checkpoints::series() {
  if (!series_) series_ = rank_.options.series;
  if (!series_) series_ = std::make_shared<io::CheckpointSeries>(rank_.options.directory);
  return series_;
}

void Checkpoints::finish_saving() {
  if (saver_) saver_->wait();
}

// This rank's, in exact mode by its shards.
std::vector<GeneratorStates> Checkpoints::generator_states() {
  if (!rank_.shards) return {states_of(rank_.generators, device())};
  std::vector<GeneratorStates> states;
  for (rng::RankGenerators& shard : rank_.shards->of_shards()) states.push_back(states_of(shard, device()));
  return states;
}

// Rank 0's, and the generators of all.
StateFile Checkpoints::describe_state(const std::vector<GeneratorStates>& generators) const {
  StateFile state;
  state.models = static_cast<std::int64_t>(parts_.reducers.size());
  for (const auto& optimizer : parts_.alive_optimizers())
    state.optimizers.push_back({optimizer.updates(), optimizer.step_was_skipped()});
  for (const auto& scheduler : parts_.alive_schedulers()) {
    if (!scheduler.inner() && optim::goes_by_metric(scheduler))
      throw ConfigError(
          "torch::optim::ReduceLROnPlateauScheduler does not tell its state, so that it cannot be saved; "
          "use tandem::optim::ReduceLROnPlateau");
    state.scheduler_steps.push_back(scheduler.inner() ? -1 : scheduler.updates());
  }
  for (const auto& loader : parts_.alive_loaders()) state.loaders.push_back(loader->state());
  state.scaler = parts_.scaler.has_value();
  state.objects = static_cast<std::int64_t>(registered_.objects.size());
  state.generators = generators;
  if (rank_.shards) state.exact = {rank_.threads_per_rank, states_of(rank_.shards->outside(), device())};
  state.micro_batches = rank_.window.count();
  return state;
}

optim::GroupValues Checkpoints::group_values(const torch::optim::Optimizer& optimizer) const {
  optim::GroupValues values(optimizer.param_groups().size());
  for (const auto& scheduler : parts_.alive_schedulers())
    if (scheduler.inner() && &scheduler.inner()->optimizer() == &optimizer)
      for (std::size_t group = 0; group < values.size(); ++group)
        values[group].merge(scheduler.inner()->group_values(group));
  return values;
}

optim::SaveOptions Checkpoints::save_options(const optim::AcceleratedOptimizer& optimizer,
                                             const optim::ParameterNames& names) {
  return {.names = names,
          .its_class = optim::class_of(optimizer),
          .has_stepped = optimizer.updates() > 0,
          .warn = [this](const std::string& what) {
            if (warnings_.insert(what).second && rank_.on_warning) rank_.on_warning(what);
          }};
}

// As they are called in the files of the models. Of further models with the file's name before it, so that an optimizer
// of several has no two of a name.
optim::ParameterNames Checkpoints::parameter_names() const {
  std::map<const void*, std::string> names;
  std::size_t index = 0;
  for (const auto& reducer : parts_.reducers) {
    const std::string prefix = index == 0 ? "" : numbered("model", index) + ".";
    for (const auto& item : reducer->module()->named_parameters())
      names.emplace(item.value().unsafeGetTensorImpl(), prefix + item.key());
    index += 1;
  }
  return [names = std::move(names)](const at::Tensor& parameter) {
    const auto found = names.find(parameter.unsafeGetTensorImpl());
    return found == names.end() ? std::string() : found->second;
  };
}

// The files of a checkpoint, of tensors that `keep` gives for those of the state.
std::vector<io::NewFile> Checkpoints::state_files(const std::string& directory, StateFile state,
                                                  std::uint64_t max_shard_bytes,
                                                  const std::function<at::Tensor(const at::Tensor&)>& keep) {
  std::vector<io::NewFile> files;
  const auto add_pickle = [&](const std::string& name, const c10::IValue& value) {
    files.push_back(pickle_file(directory, name, value, keep));
  };
  std::size_t index = 0;
  const auto names = parameter_names();
  for (const auto& optimizer : parts_.alive_optimizers())  // first, because they take longest
    add_pickle(numbered("optimizer", index++) + ".bin",
               optim::state_dict(optimizer.inner(), group_values(optimizer.inner()), save_options(optimizer, names)));
  index = 0;
  for (const auto& reducer : parts_.reducers) {
    io::NamedTensors weights = io::weights_of(*reducer->module());
    for (auto& [name, tensor] : weights) tensor = keep(tensor);
    for (auto& file : io::weight_files(numbered("model", index++), weights, max_shard_bytes, directory))
      files.push_back(std::move(file));
  }
  index = 0;
  for (const auto& scheduler : parts_.alive_schedulers()) {
    if (scheduler.inner())
      add_pickle(numbered("scheduler", index) + ".bin", optim::state_dict(scheduler.inner()->state()));
    index += 1;
  }
  for (index = 0; index < state.loaders.size(); ++index)
    if (has_sampler_file(state.loaders[index]))
      add_pickle(numbered("sampler", index) + ".bin", state.loaders[index].generator);
  if (parts_.scaler) add_pickle("scaler.pt", optim::state_dict(parts_.scaler->state()));
  index = 0;
  for (const StateObject& object : registered_.objects)
    add_pickle("custom_checkpoint_" + std::to_string(index++) + ".pkl", object.save());
  for (const StateHooks& hooks : registered_.hooks) {
    if (!hooks.save) continue;
    for (const auto& [name, bytes] : hooks.save()) {
      state.hook_files.push_back(name);
      files.push_back(text_file(name, bytes));
    }
  }
  files.push_back(text_file("tandem_state.json", to_text(state, directory + "/tandem_state.json")));
  return files;
}

std::string Checkpoints::save(const std::string& directory, const SaveStateOptions& options, SaveWritten written) {
  const CheckpointOptions& checkpoints = rank_.options;
  check_on_all([&] {
    if (directory.empty() && checkpoints.directory.empty() && !checkpoints.series)
      throw ConfigError("save_state without a directory needs LaunchConfig::checkpoints.directory");
    synchronize(device());
  });
  const auto of_ranks =
      comm::detail::gather_objects(rank_.group, rank_.rank, generator_states());  // the work of all ranks is done
  std::vector<GeneratorStates> generators;
  for (std::size_t sub_step = 0; sub_step < of_ranks.front().size(); ++sub_step)
    for (const auto& of_rank : of_ranks) generators.push_back(of_rank[sub_step]);
  StateSaver::Job job;  // on rank 0; without a directory: left out
  on_main_for_all([&] {
    if (options.background && options.when_busy == WhenBusy::skip && saver().busy()) return;
    written ? saver().settle() : saver().wait();  // the program's failures are not the host's
    saver().snapshot().begin();
    const auto keep = [&](const at::Tensor& tensor) {
      return options.background ? saver().snapshot().add(tensor) : tensor;
    };
    if (directory.empty()) job.series = series();
    const std::string path = job.series ? job.series->next() : directory;
    const StateFile state = describe_state(generators);
    job.files = state_files(path, state, options.max_shard_bytes, keep);
    synchronize(device());  // what objects have computed for it; threads write it
    job.info = {{"kind", "state"},
                {"updates", std::to_string(state.optimizers.empty() ? 0 : state.optimizers[0].updates)},
                {"ranks", std::to_string(rank_.group.world_size())}};
    job.total_limit = checkpoints.total_limit;
    job.directory = path;
    job.written = std::move(written);
    if (!options.background) StateSaver::write(job);
  });
  const auto [path, background] = of_main(std::pair(job.directory, options.background));
  if (!background || path.empty()) return path;
  // The ranks of rank 0's process share the work.
  if (const auto saver = of_first_here(saver_)) saver->snapshot().copy_part(rank_.rank, rank_.devices);
  synchronize(device());
  rank_.group.meet(rank_.rank, {.operation = "barrier"});
  if (!is_main()) return path;
  saver().snapshot().release_originals();
  saver().start(std::move(job));
  return path;
}

}  // namespace tandem
