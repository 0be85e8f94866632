// tandem_state.json: what of a training's state is in none of the other files of a checkpoint, which state_files in
// save_state.cpp lists. How they make a directory is in io/checkpoint_directory.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tandem/comm/object_bytes.h"
#include "tandem/data/loader_state.h"

namespace tandem {

/// States of one rank's default generators, as their bytes.
struct GeneratorStates {
  std::string cpu, cuda;  ///< empty: it has none
};

inline std::string to_bytes(const GeneratorStates& states) { return comm::pack(states.cpu, states.cuda); }
inline void from_bytes(std::string_view bytes, GeneratorStates& states) {
  comm::unpack(bytes, states.cpu, states.cuda);
}

struct OptimizerCounts {
  std::int64_t updates = 0;
  bool last_step_was_skipped = false;
};

/// What exact mode has beside the generators of its logical shards.
struct ExactState {
  std::int64_t threads_per_rank = 1;
  GeneratorStates outside;  ///< what draws outside of any shard's work
};

struct StateFile {
  std::int64_t models = 0, objects = 0;  ///< how many there are in files of their own
  bool scaler = false;
  std::vector<OptimizerCounts> optimizers;
  std::vector<std::int64_t> scheduler_steps;  ///< of LibTorch's: updates; of others -1, because their files say it
  std::vector<data::LoaderState> loaders;
  std::vector<std::size_t> sampler_files;   ///< loaders whose sampler's state is in a file of its own; when it was read
  std::vector<GeneratorStates> generators;  ///< by rank; in exact mode by logical shard
  std::optional<ExactState> exact;          ///< nothing: not made in exact mode
  std::int64_t micro_batches = 0;           ///< GradientState::step
  std::vector<std::string> hook_files;
};

/// Whether the state of the loader's sampler is for a file of its own: it is large, or of another type than bytes.
bool has_sampler_file(const data::LoaderState& loader);

/// Throws CheckpointError that names the file, as `shown`, when a name in it is no UTF-8.
std::string to_text(const StateFile& state, const std::string& shown);

/// Throws CheckpointError that names the file as `shown` and the field.
StateFile parse_state_file(const std::string& text, const std::string& shown);

/// Name without its ending of the file number `index` of its kind, as Accelerate has it: model, model_1, model_2, …
std::string numbered(const std::string& kind, std::size_t index);

/// The bytes of a generator's state, and back.
std::string bytes_of(const at::Tensor& generator_state);
at::Tensor generator_state_of(const std::string& bytes);

}  // namespace tandem
