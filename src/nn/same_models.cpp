#include "nn/same_models.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "comm/rank_group.h"
#include "nn/tensor_layout.h"
#include "tandem/comm/detail/objects.h"
#include "tandem/core/error.h"

namespace tandem::nn {
namespace {

// A model as other ranks see it.
struct Described {
  bool given = false;
  std::vector<std::string> parameters{}, buffers{};
  std::vector<const void*> to_train{};  // the parameters that need a gradient; null: others. Within a process
};

std::string to_bytes(const Described& model) { return comm::pack(model.given, model.parameters, model.buffers); }

void from_bytes(std::string_view bytes, Described& model) {
  comm::unpack(bytes, model.given, model.parameters, model.buffers);
}

template <class Items>
NamedTensors each_once(const Items& items) {
  NamedTensors tensors;
  for (const auto& item : items)
    if (std::none_of(tensors.begin(), tensors.end(),
                     [&](const auto& known) { return known.second.is_same(item.value()); }))
      tensors.emplace_back(item.key(), item.value());
  return tensors;
}

std::string describe(const std::string& name, const at::Tensor& tensor) {
  std::string text = name + ' ' + c10::str(tensor.scalar_type(), tensor.sizes());
  if (tensor.layout() != at::kStrided && tensor.layout() != at::kMkldnn)
    text += ' ' + c10::str(tensor.layout()) + " of " + std::to_string(tensor._nnz()) + " entries";
  else if (!tensor.is_non_overlapping_and_dense() && memory_of(tensor).front().numel() != tensor.numel())
    text += " expanded";
  return text;
}

Described describe(const torch::nn::Module& module) {
  Described model{.given = true};
  for (const auto& [name, tensor] : parameters_once(module)) {
    model.parameters.push_back(describe(name, tensor));
    model.to_train.push_back(tensor.requires_grad() ? tensor.unsafeGetTensorImpl() : nullptr);
  }
  for (const auto& [name, tensor] : buffers_once(module)) model.buffers.push_back(describe(name, tensor));
  return model;
}

std::optional<std::string> difference(const char* kind, int rank, const std::vector<std::string>& theirs,
                                      const std::vector<std::string>& main) {
  const auto at = [](const std::vector<std::string>& all, std::size_t i) {
    return i < all.size() ? all[i] : "nothing";
  };
  for (std::size_t i = 0; i < std::max(theirs.size(), main.size()); ++i)
    if (const std::string here = at(theirs, i), there = at(main, i); here != there)
      return "the model differs between ranks: " + std::string(kind) + ' ' + std::to_string(i) + " is " + here +
             " on rank " + std::to_string(rank) + " and " + there + " on rank 0; build the same model on every rank";
  return std::nullopt;
}

// What is wrong with the model of `rank`, which is not 0, when rank 0 has `main`.
std::optional<std::string> problem_of(int rank, const Described& theirs, const Described& main) {
  if (auto problem = difference("parameter", rank, theirs.parameters, main.parameters)) return problem;
  for (std::size_t i = 0; i < std::min(theirs.to_train.size(), main.to_train.size()); ++i)
    if (theirs.to_train[i] && theirs.to_train[i] == main.to_train[i])
      return "parameter " + theirs.parameters[i].substr(0, theirs.parameters[i].find(' ')) + " of rank " +
             std::to_string(rank) +
             " is the very tensor of rank 0; make the module within the body, so that each rank has its own";
  return difference("buffer", rank, theirs.buffers, main.buffers);
}

}  // namespace

NamedTensors parameters_once(const torch::nn::Module& module) { return each_once(module.named_parameters()); }

NamedTensors buffers_once(const torch::nn::Module& module) { return each_once(module.named_buffers()); }

void check_same_models(comm::RankGroup& group, int rank, const torch::nn::Module* module) {
  const Described mine = module ? describe(*module) : Described();
  std::optional<std::string> problem;
  {
    const comm::detail::ObjectExchange all(group, rank, comm::detail::object_call<Described>("prepare(model)", false),
                                           &mine);
    for (int peer = 0; peer < group.world_size() && !problem; ++peer)
      if (!all.of<Described>(peer).given)
        problem = "prepare got an empty module on rank " + std::to_string(peer) + "; give it one that was made";
    for (int peer = 1; peer < group.world_size() && !problem; ++peer)
      problem = problem_of(peer, all.of<Described>(peer), all.of<Described>(0));
  }
  if (problem) throw ConfigError(*problem);
}

}  // namespace tandem::nn
