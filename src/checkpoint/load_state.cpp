// How a training goes on from a saved state.
#include <algorithm>
#include <unordered_set>

#include "backend/rank_memory.h"
#include "checkpoint/checkpoints.h"
#include "data/loader_base.h"
#include "io/checkpoint_source.h"
#include "io/file_bytes.h"
#include "io/ivalue_tensors.h"
#include "io/model_weights.h"
#include "io/scalar_types.h"
#include "tandem/comm/detail/objects.h"
#include "tandem/core/error.h"
#include "tandem/io/checkpoint_series.h"
#include "tandem/trace/range.h"

namespace tandem::io {

static std::string to_bytes(const StoredWeights& weights) {
  return comm::pack(weights.directory, weights.tensors, weights.files);
}

static void from_bytes(std::string_view bytes, StoredWeights& weights) {
  comm::unpack(bytes, weights.directory, weights.tensors, weights.files);
}

}  // namespace tandem::io

namespace tandem {

// What the files of a checkpoint hold, read once for all ranks.
struct Checkpoints::LoadedState {
  std::string directory;
  std::optional<StateFile> state;  // nothing: Python's checkpoint, which has the other files only
  std::vector<io::StoredWeights> models;
  std::vector<c10::IValue> optimizers, schedulers, objects;
  std::optional<c10::IValue> scaler;
  StateFiles hook_files;

  // For other nodes.
  friend std::string to_bytes(const LoadedState& loaded) {
    return comm::pack(loaded.directory, loaded.state ? to_text(*loaded.state, loaded.directory) : "", loaded.models,
                      loaded.optimizers, loaded.schedulers, loaded.objects, loaded.scaler, loaded.hook_files);
  }
  friend void from_bytes(std::string_view bytes, LoadedState& loaded) {
    std::string state;
    comm::unpack(bytes, loaded.directory, state, loaded.models, loaded.optimizers, loaded.schedulers, loaded.objects,
                 loaded.scaler, loaded.hook_files);
    if (!state.empty()) loaded.state = parse_state_file(state, loaded.directory);
  }
};

namespace {

std::string read_small(const io::CheckpointReader& reader, const std::string& name) {
  constexpr std::uint64_t kMostBytes = 64 << 20;  // generators of 1,000 ranks have 10 MB
  if (reader.bytes_of(name) > kMostBytes) throw CheckpointError(name + " is too long for what it is");
  return reader.read(name);
}

// Of weights that all ranks have in one memory, each rank writes a part; these are the others' parts.
std::unordered_set<const void*> written_by_others(nn::ModelReducer& reducer, int rank, const comm::NodePlace& here) {
  std::unordered_set<const void*> others, seen;
  for (const at::Tensor& parameter : reducer.module()->parameters()) {
    const void* const impl = parameter.unsafeGetTensorImpl();
    const int writer = here.first_rank + static_cast<int>(seen.size()) % here.local_ranks;
    if (seen.insert(impl).second && writer != rank && reducer.weights().shares(parameter)) others.insert(impl);
  }
  return others;
}

at::Tensor sampler_state_in(const c10::IValue& value, const std::string& directory) {
  if (!value.isTensor()) throw CheckpointError(directory + ": a sampler's state is no tensor");
  return value.toTensor();
}

bool keeps_options(const LoadStateOptions& options) { return options.optimizer_options == SettingsOf::checkpoint; }

optim::GradScalerState scaler_state(const c10::IValue& file, const optim::GradScalerState& own,
                                    const LoadStateOptions& options) {
  auto state = optim::grad_scaler_state_of(file);
  if (keeps_options(options)) return state;
  state.growth_factor = own.growth_factor;
  state.backoff_factor = own.backoff_factor;
  state.growth_interval = own.growth_interval;
  return state;
}

void set_states(rng::RankGenerators& generators, const GeneratorStates& states, c10::Device device) {
  generators.cpu.set_state(generator_state_of(states.cpu));
  at::Generator* const cuda = generators.of_gpu(device);
  if (cuda && cuda->defined() && !states.cuda.empty()) cuda->set_state(generator_state_of(states.cuda));
}

void check_count(const std::string& directory, const char* what, std::size_t stored, std::size_t prepared) {
  if (stored == prepared) return;
  throw CheckpointError(directory + ": is of " + std::to_string(stored) + " prepared " + what + ", and there are " +
                        std::to_string(prepared) + "; prepare what was prepared when it was saved");
}

}  // namespace

// Reads all files that the prepared objects need.
std::shared_ptr<Checkpoints::LoadedState> Checkpoints::read_state(const std::string& directory) const {
  const OtherMemoryScope memory;  // as file_bytes.cpp has it: not in huge pages
  io::CheckpointSource source(directory);
  auto loaded = std::make_shared<LoadedState>();
  loaded->directory = directory;
  if (const io::CheckpointReader* reader = source.reader(); reader && reader->has("tandem_state.json"))
    loaded->state = parse_state_file(read_small(*reader, "tandem_state.json"), source.shown("tandem_state.json"));
  loaded->optimizers.resize(parts_.alive_optimizers().size());
  loaded->schedulers.resize(parts_.alive_schedulers().size());
  loaded->objects.resize(loaded->state ? registered_.objects.size() : 0);
  check_exact(*loaded);
  if (loaded->state) check_counts(*loaded);

  const auto pickle = [&](const std::string& name) { return io::pickle_in(source.load(name), source.shown(name)); };
  for (std::size_t i = 0; i < parts_.reducers.size(); ++i)
    loaded->models.push_back(io::read_weights(source, numbered("model", i)));
  for (std::size_t i = 0; i < loaded->optimizers.size(); ++i)
    loaded->optimizers[i] = pickle(numbered("optimizer", i) + ".bin");
  for (std::size_t i = 0; i < loaded->schedulers.size(); ++i)
    if (!loaded->state || loaded->state->scheduler_steps[i] < 0)
      loaded->schedulers[i] = pickle(numbered("scheduler", i) + ".bin");
  if (loaded->state)
    for (const std::size_t i : loaded->state->sampler_files)
      loaded->state->loaders[i].generator = sampler_state_in(pickle(numbered("sampler", i) + ".bin"), directory);
  if (parts_.scaler && (source.has("scaler.pt") || loaded->state)) loaded->scaler = pickle("scaler.pt");
  for (std::size_t i = 0; i < loaded->objects.size(); ++i)
    loaded->objects[i] = pickle("custom_checkpoint_" + std::to_string(i) + ".pkl");
  if (loaded->state)
    for (const std::string& name : loaded->state->hook_files) loaded->hook_files[name] = source.reader()->read(name);
  source.verify();
  return loaded;
}

// Rank 0's, which the ranks of a process share: other nodes need not see its files.
std::shared_ptr<Checkpoints::LoadedState> Checkpoints::on_all_ranks(std::shared_ptr<LoadedState> loaded) const {
  if (rank_.group.place().nodes > 1) {
    const auto bytes = rank_.group.gather_bytes(rank_.rank, {.operation = "load_state"},
                                                is_main() ? to_bytes(*loaded) : std::string());
    if (rank_.rank == first_rank() && !is_main()) from_bytes(bytes[0], *(loaded = std::make_shared<LoadedState>()));
  }
  return of_first_here(loaded);
}

// In exact mode: whether it goes on with the same bits.
void Checkpoints::check_exact(const LoadedState& loaded) const {
  if (!rank_.shards) return;
  const std::size_t shards = rank_.shards->of_shards().size() * static_cast<std::size_t>(rank_.group.world_size());
  const auto& state = loaded.state;
  if (!state || !state->exact)
    throw CheckpointError(loaded.directory +
                          ": was not made in exact mode, which cannot go on from it with the bits "
                          "that it would have; load its weights with load_model");
  if (state->generators.size() != shards)
    throw CheckpointError(loaded.directory + ": is of " + std::to_string(state->generators.size()) +
                          " logical ranks, and this training has " + std::to_string(shards) +
                          "; set exact.logical_ranks to those of the checkpoint");
  if (state->exact->threads_per_rank != rank_.threads_per_rank)
    throw CheckpointError(loaded.directory + ": was made in exact mode with " +
                          std::to_string(state->exact->threads_per_rank) + " threads a rank, and this training has " +
                          std::to_string(rank_.threads_per_rank) + ", which compute other bits; set threads_per_rank");
}

void Checkpoints::check_counts(const LoadedState& loaded) const {
  const StateFile& state = *loaded.state;
  const auto check = [&](const char* what, auto stored, std::size_t prepared) {
    check_count(loaded.directory, what, static_cast<std::size_t>(stored), prepared);
  };
  check("models", state.models, parts_.reducers.size());
  check("optimizers", state.optimizers.size(), loaded.optimizers.size());
  check("schedulers", state.scheduler_steps.size(), loaded.schedulers.size());
  check("loaders", state.loaders.size(), parts_.alive_loaders().size());
  if (static_cast<std::size_t>(state.objects) != registered_.objects.size())
    throw CheckpointError(loaded.directory + ": is of " + std::to_string(state.objects) +
                          " objects registered for checkpointing, and there are " +
                          std::to_string(registered_.objects.size()) +
                          "; register what was registered when it was saved");
  if (state.scaler && !parts_.scaler)
    throw CheckpointError(loaded.directory + ": is of a training in fp16, and this one has no scaler");
  if (!state.scaler && parts_.scaler)
    throw CheckpointError(loaded.directory +
                          ": is of a training without a scaler, and this one, in fp16, needs its state");
}

// Rank 0 reads; when the newest checkpoint of the series is damaged, the one before.
std::shared_ptr<Checkpoints::LoadedState> Checkpoints::read_latest() const {
  auto paths = io::list_checkpoints(rank_.options.directory);
  if (paths.empty()) throw CheckpointError(rank_.options.directory + ": has no checkpoint");
  std::optional<CheckpointError> newest;
  for (; !paths.empty(); paths.pop_back()) {
    try {
      return read_state(paths.back());
    } catch (const CheckpointError& error) {
      if (rank_.on_warning) rank_.on_warning(std::string(error.what()) + "; the checkpoint before is tried");
      if (!newest) newest = error;
    }
  }
  throw *newest;
}

// Of a scheduler of PyTorch's in Accelerate, which says how often it was stepped.
std::int64_t Checkpoints::updates_in(const c10::IValue& scheduler) const {
  const auto steps = optim::scheduler_state_of(scheduler).get<std::int64_t>("last_epoch");
  return steps / rank_.scheduler_steps_per_update;
}

std::size_t Checkpoints::schedulers_of(const torch::optim::Optimizer& optimizer) const {
  const auto all = parts_.alive_schedulers();
  return static_cast<std::size_t>(std::count_if(all.begin(), all.end(), [&](const auto& scheduler) {
    return scheduler.inner() && &scheduler.inner()->optimizer() == &optimizer;
  }));
}

// One of LibTorch's, which tells neither its state nor its optimizer.
void Checkpoints::prepare_scheduler(Steps& steps, optim::AcceleratedScheduler scheduler, const LoadedState& loaded,
                                    std::size_t index, const LoadStateOptions& options) const {
  if (scheduler.inner()) return prepare_own_scheduler(steps, scheduler, loaded.schedulers[index], options);
  constexpr std::int64_t kMostUpdates = 1'000'000'000;  // each is a step of the scheduler's
  const std::int64_t updates =
      loaded.state ? loaded.state->scheduler_steps[index] : updates_in(loaded.schedulers[index]);
  if (updates > kMostUpdates)
    throw CheckpointError(loaded.directory + ": has an impossible number of a scheduler's updates");
  if (scheduler.updates() > updates)
    throw ConfigError("LibTorch's scheduler has made " + std::to_string(scheduler.updates()) +
                      " updates and cannot go back to " + std::to_string(updates) + "; make a new one");
  steps.apply.emplace_back([scheduler, updates] { optim::catch_up(scheduler, updates); });
}

void Checkpoints::prepare_own_scheduler(Steps& steps, optim::AcceleratedScheduler scheduler, const c10::IValue& file,
                                        const LoadStateOptions& options) const {
  optim::Scheduler& inner = *scheduler.inner();
  const bool alone = schedulers_of(inner.optimizer()) < 2;
  const bool keeps = keeps_options(options);
  auto state = optim::scheduler_state_of(file);
  const auto last = state.get<std::int64_t>("last_epoch");
  if (!keeps && !alone)
    throw ConfigError(
        "several schedulers change the rates of one optimizer, so that nobody can tell what they are over this "
        "program's learning rate; load the state with SettingsOf::checkpoint");
  if (!keeps) state = inner.with_own_rates(std::move(state));
  // First, because only the schedulers themselves find out whether they can be there.
  steps.apply.insert(steps.apply.begin(), [&inner, state] { inner.load_state(state); });
  steps.apply.emplace_back([scheduler, last] { optim::set_inner_steps(scheduler, last); });
  steps.undo.emplace_back([&inner, before = inner.state()] { inner.load_state(before); });
  // The optimizer has its options now, which are right for a schedule that is as it was.
  steps.settle.emplace_back([&inner, state, keeps, alone]() mutable {
    const std::vector<double> rates = inner.last_lr();
    if (keeps && !state.course.empty()) state.values["_last_lr"] = rates;
    inner.load_state(state);
    const bool is_other = inner.last_lr() != state.get<std::vector<double>>("_last_lr");
    if (keeps && (!is_other || (state.course.empty() && !alone)))
      for (std::size_t i = 0; i < rates.size(); ++i) inner.optimizer().param_groups()[i].options().set_lr(rates[i]);
  });
}

// What gives this rank's models, schedulers, scaler and loaders their state, checked as far as that can be.
Checkpoints::Steps Checkpoints::prepare_state(const LoadedState& loaded, const LoadStateOptions& options) {
  Steps steps;
  std::size_t index = 0;
  std::vector<std::function<void()>> weights;
  for (const auto& reducer : parts_.reducers) {
    const auto others = written_by_others(*reducer, rank_.rank, rank_.group.place());
    weights.push_back(
        [reducer, load = io::prepare_load(loaded.models[index++], *reducer->module(), [&](const at::Tensor& tensor) {
                    return !others.contains(tensor.unsafeGetTensorImpl());
                  })] { reducer->weights().write(load); });
  }
  index = 0;
  const auto names = parameter_names();
  // Only checked: what a rank needs of them is found out when they are loaded. Nothing is copied for that.
  for (const auto& optimizer : parts_.alive_optimizers())
    optim::prepare_load(optimizer.inner(), loaded.optimizers[index++],
                        {.may_take = true, .names = names, .with_options = keeps_options(options)});
  index = 0;
  for (const auto& scheduler : parts_.alive_schedulers()) prepare_scheduler(steps, scheduler, loaded, index++, options);
  if (loaded.scaler)
    steps.apply.emplace_back([this, state = scaler_state(*loaded.scaler, parts_.scaler->state(), options)] {
      parts_.scaler->load_state(state);
    });
  index = 0;
  for (const auto& loader : loaded.state ? parts_.alive_loaders() : std::vector<std::shared_ptr<data::LoaderBase>>()) {
    const data::LoaderState& state = loaded.state->loaders[index++];
    data::check_loader_state(state, loader->global_batch_size());
    steps.apply.emplace_back([loader, state] { loader->load_state(state); });
  }
  // Last: they cannot fail any more, and the others may.
  steps.apply.insert(steps.apply.end(), weights.begin(), weights.end());
  return steps;
}

void Checkpoints::load_optimizers(const LoadedState& loaded, const LoadStateOptions& options) {
  std::size_t index = 0;
  const auto names = parameter_names();
  for (auto optimizer : parts_.alive_optimizers()) {
    const c10::IValue& state = loaded.optimizers[index];
    const auto load = [&](const std::function<bool(const at::Tensor&)>& wanted) {
      // A tensor that one rank alone wants may become that rank's.
      const bool may_take = static_cast<bool>(wanted) || rank_.group.world_size() == 1;
      std::function<void()> apply;
      check_on_all([&] {
        apply = optim::prepare_load(optimizer.inner(), state, {wanted, may_take, names, keeps_options(options)});
      });
      check_on_all(apply);  // it may be the program's own
    };
    if (auto* sharded = optim::sharded_of(optimizer))
      sharded->load(load);
    else
      load({});
    if (loaded.state) {
      const OptimizerCounts& counts = loaded.state->optimizers[index];
      optim::set_updates(optimizer, counts.updates, counts.last_step_was_skipped);
    }
    index += 1;
  }
}

// A rank that was not there before begins a stream of its own, which none has had.
void Checkpoints::load_generators(const StateFile& state) {
  if (rank_.shards) return load_shard_generators(state);
  const auto index = static_cast<std::size_t>(rank_.rank);
  if (index >= state.generators.size()) {
    const auto updates = state.optimizers.empty() ? 0 : state.optimizers[0].updates;
    rng::manual_seed(rng::rank_seed(rank_.seed + static_cast<std::uint64_t>(updates), rank_.rank));
    return;
  }
  set_states(rank_.generators, state.generators[index], device());
}

void Checkpoints::load_shard_generators(const StateFile& state) {
  auto& shards = rank_.shards->of_shards();
  const auto ranks = static_cast<std::size_t>(rank_.group.world_size());
  for (std::size_t i = 0; i < shards.size(); ++i)
    set_states(shards[i], state.generators[static_cast<std::size_t>(rank_.rank) + i * ranks], device());
  set_states(rank_.shards->outside(), state.exact->outside, device());
}

Checkpoints::Loaded Checkpoints::load(const std::string& directory, const LoadStateOptions& options) {
  const trace::Range range(trace::Event::checkpoint);
  check_on_all([&] {
    if (directory.empty() && rank_.options.directory.empty())
      throw ConfigError("load_state without a directory needs LaunchConfig::checkpoints.directory");
  });
  std::shared_ptr<LoadedState> loaded;
  on_main_for_all([&] {
    finish_saving();
    loaded = directory.empty() ? read_latest() : read_state(directory);
  });
  loaded = on_all_ranks(loaded);
  for (const auto& reducer : parts_.reducers) reducer->weights().notice();
  Steps steps;
  // When it is done, nobody computes with weights that are shared.
  check_on_all([&] { steps = prepare_state(*loaded, options); });
  try {
    check_on_all([&] {
      for (const auto& step : steps.apply) step();
    });
  } catch (...) {
    for (const auto& step : steps.undo) step();
    throw;
  }
  for (const auto& reducer : parts_.reducers) {
    reducer->clear_gradients();
    reducer->weights().accept();
  }
  load_optimizers(*loaded, options);  // after the schedulers: the rates are those of the state
  check_on_all([&] {
    for (const auto& step : steps.settle) step();
  });
  if (loaded->state) {
    rank_.window.set_count(loaded->state->micro_batches);
    check_on_all([&] { load_generators(*loaded->state); });
  }
  check_on_all([&] {
    // Each rank's own: objects may keep the tensors.
    const auto mine = [](const at::Tensor& tensor) { return io::copy_of(tensor); };
    for (std::size_t i = 0; i < loaded->objects.size(); ++i)
      registered_.objects[i].load(io::map_tensors(loaded->objects[i], mine));
    for (const StateHooks& hooks : registered_.hooks)
      if (hooks.load && loaded->state) hooks.load(loaded->hook_files);
  });
  const bool has_updates = loaded->state && !loaded->state->optimizers.empty();
  return {loaded->directory, has_updates ? std::optional(loaded->state->optimizers[0].updates) : std::nullopt};
}

}  // namespace tandem
