#include "optim/own_optimizer_archives.h"

#include <algorithm>
#include <sstream>

#include <ATen/Functions.h>
#include <c10/util/Type.h>
#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/lbfgs.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>

#include "tandem/core/error.h"

namespace tandem::optim {

using torch::optim::OptimizerParamState;
using torch::serialize::InputArchive;
using torch::serialize::OutputArchive;
using State = std::unique_ptr<OptimizerParamState>;

std::string class_name(const std::type_info& type) { return c10::demangle(type.name()); }

// ---- archives as bytes

at::Tensor bytes_of(OutputArchive& archive) {
  std::ostringstream stream;
  archive.save_to(stream);
  const std::string bytes = stream.str();
  return at::from_blob(const_cast<char*>(bytes.data()), static_cast<std::int64_t>(bytes.size()), at::kByte).clone();
}

std::shared_ptr<InputArchive> archive_in(const Dict& all, const char* name, std::optional<at::Device> device) {
  const IValue bytes = field(all, name, "the optimizer's state, which is not PyTorch's for this class,");
  if (!bytes.isTensor()) fail(std::string(kWhole) + ": '" + name + "' is no tensor of bytes");
  const at::Tensor content = bytes.toTensor().contiguous();
  auto archive = std::make_shared<InputArchive>();
  try {
    archive->load_from(static_cast<const char*>(content.const_data_ptr()), content.nbytes(), device);
  } catch (const c10::Error& error) {
    fail(std::string(kWhole) + ": '" + name + "' is damaged: " + error.what_without_backtrace());
  }
  return archive;
}

std::vector<std::string> keys_of(InputArchive& archive) {
  std::vector<std::string> keys = archive.keys();
  std::sort(keys.begin(), keys.end());
  return keys;
}

std::vector<std::string> keys_of(OutputArchive& archive) {
  Dict all = new_dict();
  all.insert(kSaved, bytes_of(archive));
  return keys_of(*archive_in(all, kSaved, std::nullopt));
}

namespace {

template <class Its>
KnownState known(const char* name) {
  return {.type = &typeid(Its),
          .name = name,
          .make = []() -> State { return std::make_unique<Its>(); },
          .is_base_of = [](const OptimizerParamState& state) { return dynamic_cast<const Its*>(&state) != nullptr; },
          .write = [](const OptimizerParamState& state,
                      OutputArchive& archive) { static_cast<const Its&>(state).Its::serialize(archive); }};
}

}  // namespace

const std::array<KnownState, 6>& known_states() {
  using namespace torch::optim;
  static const std::array<KnownState, 6> all{
      known<SGDParamState>("SGDParamState"),         known<AdamParamState>("AdamParamState"),
      known<AdamWParamState>("AdamWParamState"),     known<RMSpropParamState>("RMSpropParamState"),
      known<AdagradParamState>("AdagradParamState"), known<LBFGSParamState>("LBFGSParamState")};
  return all;
}

std::string known_name(const OptimizerParamState& state) {
  for (const KnownState& one : known_states())
    if (typeid(state) == *one.type) return one.name;
  return {};
}

void write_state(OutputArchive& archive, const OptimizerParamState& state) {
  using torch::optim::LBFGSParamState;
  try {
    if (typeid(state) == typeid(LBFGSParamState)) {
      LBFGSParamState copy(static_cast<const LBFGSParamState&>(state));
      copy.al(std::nullopt);  // made anew by each iteration; LibTorch cannot write it before its history is full
      copy.serialize(archive);
    } else {
      state.serialize(archive);
    }
  } catch (const c10::Error& error) {
    throw ConfigError("the state " + class_name(typeid(state)) +
                      " of an optimizer cannot be saved; define both serialize(torch::serialize::OutputArchive&) const "
                      "and serialize(torch::serialize::InputArchive&): " +
                      error.what_without_backtrace());
  }
}

}  // namespace tandem::optim
