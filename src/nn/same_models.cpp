#include "nn/same_models.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "comm/call_record.h"
#include "nn/tensor_layout.h"
#include "tandem/core/error.h"

namespace tandem::nn {
namespace {

struct Tensors {
  bool given = false;
  NamedTensors parameters{}, buffers{};
};

template <class Items>
NamedTensors each_once(const Items& items) {
  NamedTensors tensors;
  for (const auto& item : items)
    if (std::none_of(tensors.begin(), tensors.end(),
                     [&](const auto& known) { return known.second.is_same(item.value()); }))
      tensors.emplace_back(item.key(), item.value());
  return tensors;
}

std::string describe(const NamedTensors& tensors, std::size_t index) {
  if (index >= tensors.size()) return "nothing";
  const auto& [name, tensor] = tensors[index];
  std::string text = name + ' ' + c10::str(tensor.scalar_type(), tensor.sizes());
  if (tensor.layout() != at::kStrided && tensor.layout() != at::kMkldnn)
    text += ' ' + c10::str(tensor.layout()) + " of " + std::to_string(tensor._nnz()) + " entries";
  else if (!tensor.is_non_overlapping_and_dense() && memory_of(tensor).front().numel() != tensor.numel())
    text += " expanded";
  return text;
}

std::optional<std::string> difference(const char* kind, int rank, const NamedTensors& theirs,
                                      const NamedTensors& main) {
  for (std::size_t i = 0; i < std::max(theirs.size(), main.size()); ++i)
    if (const std::string here = describe(theirs, i), there = describe(main, i); here != there)
      return "the model differs between ranks: " + std::string(kind) + ' ' + std::to_string(i) + " is " + here +
             " on rank " + std::to_string(rank) + " and " + there + " on rank 0; build the same model on every rank";
  return std::nullopt;
}

// What is wrong with the model of `rank`, which is not 0, when rank 0 has `main`.
std::optional<std::string> problem_of(int rank, const Tensors& theirs, const Tensors& main) {
  if (auto problem = difference("parameter", rank, theirs.parameters, main.parameters)) return problem;
  for (std::size_t i = 0; i < theirs.parameters.size(); ++i)
    if (const auto& [name, tensor] = theirs.parameters[i];
        tensor.requires_grad() && tensor.is_same(main.parameters[i].second))
      return "parameter " + name + " of rank " + std::to_string(rank) +
             " is the very tensor of rank 0; make the module within the body, so that each rank has its own";
  return difference("buffer", rank, theirs.buffers, main.buffers);
}

}  // namespace

NamedTensors parameters_once(const torch::nn::Module& module) { return each_once(module.named_parameters()); }

NamedTensors buffers_once(const torch::nn::Module& module) { return each_once(module.named_buffers()); }

void check_same_models(comm::RankGroup& group, int rank, const torch::nn::Module* module) {
  Tensors mine;
  if (module) mine = {true, parameters_once(*module), buffers_once(*module)};
  const auto record = comm::describe_object_call("prepare(model)", typeid(Tensors));
  std::optional<std::string> problem;
  {
    const comm::RankGroup::Call call(group, rank, record, &mine);
    for (int peer = 0; peer < group.world_size() && !problem; ++peer)
      if (!call.payload<Tensors>(peer).given)
        problem = "prepare got an empty module on rank " + std::to_string(peer) + "; give it one that was made";
    for (int peer = 1; peer < group.world_size() && !problem; ++peer)
      problem = problem_of(peer, call.payload<Tensors>(peer), call.payload<Tensors>(0));
  }
  if (problem) throw ConfigError(*problem);
}

}  // namespace tandem::nn
