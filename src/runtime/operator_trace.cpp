#include "runtime/operator_trace.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <optional>
#include <unordered_set>
#include <utility>

#include <ATen/Functions.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/function.h>

#include "core/word_hash.h"
#include "nn/tensor_layout.h"

namespace tandem {
namespace {

thread_local OperatorTrace* this_trace = nullptr;

// Adds to a list the tensors that an operator's argument or result has.
void add_tensors(const c10::IValue& value, std::vector<at::Tensor>& tensors) {
  if (value.isTensor())
    tensors.push_back(value.toTensor());
  else if (value.isList())
    for (const c10::IValue& element : value.toListRef()) add_tensors(element, tensors);
}

void add_memory(WordHash& hash, const at::Tensor& tensor) {
  const at::Tensor memory = tensor.contiguous().cpu();
  const auto* bytes = static_cast<const char*>(memory.const_data_ptr());
  const std::size_t size = memory.nbytes();
  for (std::size_t i = 0; i < size; i += sizeof(std::uint64_t)) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes + i, std::min(sizeof word, size - i));
    hash.add(word);
  }
}

// Operators that give fresh memory, which may hold anything.
bool gives_fresh_memory(const std::string& name) {
  return name.find("empty") != std::string::npos || name == "aten::resize_" || name == "aten::set_";
}

// Operators whose first argument may be fresh memory.
bool overwrites_first(const std::string& name) {
  static const std::unordered_set<std::string> names = {"aten::copy_",       "aten::fill_",      "aten::zero_",
                                                        "aten::normal_",     "aten::uniform_",   "aten::bernoulli_",
                                                        "aten::random_",     "aten::geometric_", "aten::exponential_",
                                                        "aten::log_normal_", "aten::cauchy_",    "aten::resize_"};
  return names.contains(name);
}

// Of an argument that is no tensor, as far as it is a number.
std::optional<std::uint64_t> hash_of_number(const c10::IValue& value) {
  WordHash hash;
  if (value.isDouble())
    hash.add(std::bit_cast<std::uint64_t>(value.toDouble()));
  else if (value.isInt())
    hash.add(static_cast<std::uint64_t>(value.toInt()));
  else if (value.isBool())
    hash.add(value.toBool() ? 1 : 0);
  else
    return std::nullopt;
  return hash.value();
}

std::string maker_of(const at::Tensor& tensor) {
  return tensor.defined() && tensor.grad_fn() ? tensor.grad_fn()->name() : "";
}

}  // namespace

std::uint64_t hash_of_tensor(const at::Tensor& tensor) {
  WordHash hash;
  if (!tensor.defined()) return hash.value();
  hash.add(static_cast<std::uint64_t>(tensor.scalar_type()));
  for (const std::int64_t size : tensor.sizes()) hash.add(static_cast<std::uint64_t>(size));
  const at::NoGradGuard no_grad;
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  if (tensor.is_meta() || tensor.is_quantized()) return hash.value();  // which have no numbers to compare
  for (const at::Tensor& part : nn::memory_of(tensor))
    if (part.has_storage()) add_memory(hash, part);
  return hash.value();
}

namespace {

void add_inputs(const at::RecordFunction& function, std::vector<TracedCall::Input>& inputs) {
  const bool skips = overwrites_first(function.name());
  for (std::size_t i = 0; i < function.inputs().size(); ++i) {
    const c10::IValue& value = function.inputs()[i];
    if (skips && i == 0) continue;
    if (const auto number = hash_of_number(value)) inputs.push_back({static_cast<int>(i + 1), *number, ""});
    std::vector<at::Tensor> tensors;
    add_tensors(value, tensors);
    for (const at::Tensor& tensor : tensors)
      inputs.push_back({static_cast<int>(i + 1), hash_of_tensor(tensor), maker_of(tensor)});
  }
}

}  // namespace

// From the start of a call to its end.
struct OperatorTrace::Call final : at::ObserverContext {
  TracedCall traced;
  bool is_recorded = false;
  std::optional<Function> around;  // for a function of backward: within which it was called
};

// What is called while one is alive is not the program's.
class OperatorTrace::Look {
 public:
  explicit Look(OperatorTrace& trace) : trace_(trace) { trace_.looks_ = true; }
  ~Look() { trace_.looks_ = false; }
  Look(const Look&) = delete;
  Look& operator=(const Look&) = delete;

 private:
  OperatorTrace& trace_;
};

OperatorTrace::OperatorTrace() {
  handle_ = at::addThreadLocalCallback(at::RecordFunctionCallback(&started, &ended)
                                           .needsInputs(true)
                                           .needsOutputs(true)
                                           .scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION}));
  this_trace = this;
}

OperatorTrace::~OperatorTrace() {
  this_trace = nullptr;
  at::removeCallback(handle_);
}

void OperatorTrace::name_layers(const std::vector<std::shared_ptr<torch::nn::Module>>& models) {
  layers_.clear();
  for (std::size_t i = 0; i < models.size(); ++i)
    for (const auto& layer : models[i]->named_modules()) {
      const std::string model = models.size() > 1 ? " of model " + std::to_string(i + 1) : "";
      const std::string path = layer.key().empty() ? "the model" : "layer " + layer.key();
      for (const at::Tensor& parameter : layer.value()->parameters(/*recurse=*/false))
        if (parameter.defined() && parameter.numel() > 0)
          layers_[parameter.const_data_ptr()] = path + " (" + layer.value()->name() + ")" + model;
    }
}

void OperatorTrace::begin_forward() {
  phase_ = Phase::forward;
  within_ = {"", true, 0};
}

void OperatorTrace::begin_backward() {
  phase_ = Phase::backward;
  within_ = {"", false, 0};
}

void OperatorTrace::pause() { phase_ = Phase::paused; }

std::vector<TracedCall> OperatorTrace::take() {
  last_layer_.clear();
  places_.clear();
  return std::exchange(calls_, {});
}

std::unique_ptr<at::ObserverContext> OperatorTrace::started(const at::RecordFunction& function) {
  return this_trace ? this_trace->start(function) : nullptr;
}

void OperatorTrace::ended(const at::RecordFunction& function, at::ObserverContext* context) {
  if (this_trace && context) this_trace->end(function, *static_cast<Call*>(context));
}

// Of which layer a call is, as far as that can be known: whose parameter it reads; in backward, whose forward it is.
std::string OperatorTrace::place_of(const at::RecordFunction& function) {
  const std::string pass = phase_ == Phase::backward ? "in the backward pass " : "";
  std::vector<at::Tensor> inputs;
  for (const c10::IValue& input : function.inputs()) add_tensors(input, inputs);
  for (const at::Tensor& input : inputs) {
    if (!input.defined() || !input.has_storage() || input.numel() == 0) continue;
    const auto layer = layers_.find(input.unsafeGetTensorImpl()->data());
    if (layer == layers_.end()) continue;
    last_layer_ = layer->second;
    return pass + "of " + last_layer_;
  }
  if (phase_ == Phase::backward) {
    const auto forward = places_.find(function.seqNr());
    const bool is_function = function.scope() == at::RecordScope::BACKWARD_FUNCTION;
    return is_function && forward != places_.end() ? pass + forward->second : within_.place;
  }
  return last_layer_.empty() ? "before the first layer with weights" : "after " + last_layer_;
}

std::unique_ptr<at::ObserverContext> OperatorTrace::start(const at::RecordFunction& function) {
  if (phase_ == Phase::paused || looks_) return nullptr;
  const Look look(*this);
  auto call = std::make_unique<Call>();
  call->traced.name = function.name();
  if (function.scope() == at::RecordScope::BACKWARD_FUNCTION) {
    const bool is_end = call->traced.name.find("AccumulateGrad") != std::string::npos;
    call->traced.place = place_of(function);
    call->around = std::exchange(within_, {call->traced.place, !is_end, 0});
    call->is_recorded = true;
  } else {
    call->is_recorded = within_.is_recorded && within_.depth == 0;
    if (within_.depth == 0) within_.outermost = place_of(function);
    call->traced.place = within_.outermost;
    within_.depth += 1;
    if (phase_ == Phase::forward && function.seqNr() >= 0) places_[function.seqNr()] = within_.outermost;
  }
  if (call->is_recorded) add_inputs(function, call->traced.inputs);
  return call;
}

void OperatorTrace::end(const at::RecordFunction& function, Call& call) {
  const Look look(*this);
  if (call.around)
    within_ = *call.around;
  else
    within_.depth -= 1;
  if (!call.is_recorded || phase_ == Phase::paused) return;
  WordHash hash;
  std::vector<at::Tensor> outputs;
  for (const c10::IValue& output : function.outputs()) add_tensors(output, outputs);
  if (!gives_fresh_memory(call.traced.name))
    for (const at::Tensor& output : outputs) hash.add(hash_of_tensor(output));
  call.traced.outputs = hash.value();
  calls_.push_back(std::move(call.traced));
}

}  // namespace tandem
