// What saving and loading optimizers of other classes both need: LibTorch's archives as bytes, and its own states.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <typeinfo>
#include <vector>

#include <torch/optim/optimizer.h>
#include <torch/serialize/archive.h>

#include "optim/ivalue_dict.h"

namespace tandem::optim {

// Names in the dict of such an optimizer.
constexpr const char* kWhole = "the optimizer's state";
constexpr const char* kSaved = "libtorch_archive";  // what its save() writes; in older checkpoints this is all
constexpr const char* kStates = "tandem_states";
constexpr const char* kOptions = "tandem_options";

/// Name of a part in an archive: of a kind, with an id.
inline std::string key(const char* kind, std::int64_t id) { return kind + std::to_string(id); }

/// A class's name as the program has it.
std::string class_name(const std::type_info& type);

/// What was written to `archive`.
at::Tensor bytes_of(torch::serialize::OutputArchive& archive);

/// The archive whose bytes `all` has under `name`, with its tensors on `device`. Throws CheckpointError.
std::shared_ptr<torch::serialize::InputArchive> archive_in(const Dict& all, const char* name,
                                                           std::optional<at::Device> device);

/// The names in an archive, sorted.
std::vector<std::string> keys_of(torch::serialize::InputArchive& archive);
/// The names in one that was written.
std::vector<std::string> keys_of(torch::serialize::OutputArchive& archive);

/// A class of LibTorch's states, which is made without an optimizer's help.
struct KnownState {
  const std::type_info* type;
  std::string name;
  std::unique_ptr<torch::optim::OptimizerParamState> (*make)();
  bool (*is_base_of)(const torch::optim::OptimizerParamState&);
  void (*write)(const torch::optim::OptimizerParamState&, torch::serialize::OutputArchive&);  // as of this class
};

/// All of them.
const std::array<KnownState, 6>& known_states();

/// The name of the state's class; empty for one of the program's.
std::string known_name(const torch::optim::OptimizerParamState& state);

/// Writes `state`. Throws ConfigError that says what to define when it cannot be written.
void write_state(torch::serialize::OutputArchive& archive, const torch::optim::OptimizerParamState& state);

}  // namespace tandem::optim
