// A ModelReducer's life, and the hooks that notice gradients; what becomes of these is in model_reducer_reduction.cpp.
#include "nn/model_reducer.h"

#include <algorithm>
#include <utility>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/nn/modules/embedding.h>
#include <torch/optim/optimizer.h>

#include "comm/call_record.h"
#include "comm/rank_group.h"
#include "nn/copy_on_write.h"
#include "nn/same_models.h"
#include "nn/tensor_layout.h"
#include "nn/without_overlaps.h"
#include "tandem/core/error.h"

namespace tandem::nn {
namespace {

// Weights that a forward pass writes to, on each rank the rows that it has looked up.
std::vector<at::Tensor> renormed_weights(const torch::nn::Module& module) {
  std::vector<at::Tensor> weights;
  const auto add_of = [&](const auto* embedding) {
    if (embedding && embedding->options.max_norm()) weights.push_back(embedding->weight);
  };
  for (const auto& part : module.modules()) {
    add_of(part->as<torch::nn::EmbeddingImpl>());
    add_of(part->as<torch::nn::EmbeddingBagImpl>());
  }
  return weights;
}

// Calls `arriving` before a gradient is added to.
class BeforeAccumulation final : public torch::autograd::FunctionPreHook {
 public:
  explicit BeforeAccumulation(std::function<void()> arriving) : arriving_(std::move(arriving)) {}

  torch::autograd::variable_list operator()(const torch::autograd::variable_list& gradients) override {
    arriving_();
    return gradients;
  }

 private:
  std::function<void()> arriving_;
};

// Calls `arrived` after a gradient was added to.
class AfterAccumulation final : public torch::autograd::FunctionPostHook {
 public:
  explicit AfterAccumulation(std::function<void()> arrived) : arrived_(std::move(arrived)) {}

  torch::autograd::variable_list operator()(const torch::autograd::variable_list& outputs,
                                            const torch::autograd::variable_list&) override {
    arrived_();
    return outputs;
  }

 private:
  std::function<void()> arrived_;
};

}  // namespace

ModelReducer::ModelReducer(std::shared_ptr<torch::nn::Module> module, comm::Communicator& communicator,
                           comm::RankGroup& group, RankPass& pass, const GradientReducerOptions& options)
    : module_(std::move(module)),
      communicator_(communicator),
      group_(group),
      pass_(pass),
      options_(options),
      weights_(parameters_, communicator, group),
      finite_check_(options.check_finite ? std::optional<FiniteCheck>(std::in_place) : std::nullopt) {
  update();
}

ModelReducer::~ModelReducer() { stop(); }

void ModelReducer::update() {
  stop();
  weights_.separate();
  weights_.end();
  take_over_tensors();
  broadcast(0);
  weights_.lend_again();
  watch_parameters();
  followed_.watch(synchronized_buffers(), renormed_weights(*module_));
}

void ModelReducer::leave_launch() {
  stop();
  if (module_.use_count() == 1) {  // nobody needs the weights any more
    module_.reset();
    index_.clear();
    slots_.clear();
    buffers_.clear();
    parameters_.clear();
  }
  weights_.end();
}

void ModelReducer::take_over_tensors() {
  parameters_ = parameters_once(*module_);
  index_.clear();
  for (std::size_t i = 0; i < parameters_.size(); ++i) index_[parameters_[i].second.unsafeGetTensorImpl()] = i;
  slots_.clear();
  slots_.resize(parameters_.size());
  anywhere_.assign(parameters_.size(), 0);
  told_.states = anywhere_;
  reached_ = anywhere_;
  buffers_.clear();
  for (const auto& [name, buffer] : buffers_once(*module_)) buffers_.push_back(buffer);
}

void ModelReducer::updated_by(const torch::optim::Optimizer& optimizer) {
  if (!followed_.left_any()) return;
  const auto& groups = optimizer.param_groups();
  const bool is_mine = std::any_of(groups.begin(), groups.end(), [this](const auto& group) {
    return std::any_of(group.params().begin(), group.params().end(), [this](const auto& one) { return has(one); });
  });
  if (!is_mine) return;
  followed_.forget_references();
  followed_.follow(communicator_, group_, 0);
}

std::optional<std::string> ModelReducer::added_parameter() const {
  std::size_t next = 0;  // mostly they are the same tensors in the same order
  for (const at::Tensor& parameter : module_->parameters()) {
    if (next < parameters_.size() && parameters_[next].second.is_same(parameter)) {
      next += 1;
      continue;
    }
    if (has(parameter)) continue;
    for (const auto& item : module_->named_parameters())
      if (item.value().is_same(parameter)) return item.key();
  }
  return std::nullopt;
}

// Parameters may be frozen and unfrozen at any time, and a change of their type gives them another node.
void ModelReducer::watch_parameters() {
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    const at::Tensor& parameter = parameters_[i].second;
    ParameterSlot& slot = slots_[i];
    if (!parameter.requires_grad()) continue;
    if (slot.accumulator && torch::autograd::impl::try_get_grad_accumulator(parameter) == slot.accumulator) continue;
    slot.stop_watching();
    slot.accumulator = torch::autograd::impl::grad_accumulator(parameter);
    auto before = std::make_unique<BeforeAccumulation>([this, i] { arriving(i); });
    slot.hook_before = before.get();
    slot.accumulator->add_pre_hook(std::move(before));
    slot.hook = slot.accumulator->add_post_hook(std::make_unique<AfterAccumulation>([this, i] { arrived(i); }));
  }
}

void ModelReducer::stop() {
  for (ParameterSlot& slot : slots_) slot.stop_watching();
  drop_buckets();
}

void ModelReducer::set_communication_hook(CommunicationHook hook) {
  hook_ = std::move(hook);
  drop_buckets();  // they may hold parameters that are not active, which a hook must not get
}

std::vector<std::string> ModelReducer::unused_parameters() const {
  std::vector<std::string> names;
  for (std::size_t i = 0; i < parameters_.size(); ++i)
    if (parameters_[i].second.requires_grad() && reached_[i] == 0) names.push_back(parameters_[i].first);
  return names;
}

void ModelReducer::clear_gradients() {
  for (auto& [name, parameter] : parameters_) parameter.mutable_grad().reset();
}

void ModelReducer::broadcast(int root) {
  std::vector<at::Tensor> everything(buffers_);
  for (const auto& [name, parameter] : parameters_) everything.push_back(parameter);
  everything = memory_of(everything);
  weights_.write([&] { communicator_.broadcast(everything, root); });
  weights_.accept();
}

void ModelReducer::average_weights() {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> averaged, copied;
  const auto has_mean = [](const at::Tensor& tensor) {
    return tensor.layout() == at::kStrided &&
           (at::isFloatingType(tensor.scalar_type()) || at::isComplexType(tensor.scalar_type()));
  };
  // The mean of equal numbers may differ from them by rounding: what is not trained is copied.
  for (const auto& [name, parameter] : parameters_)
    (parameter.requires_grad() ? averaged : copied).push_back(parameter);
  if (options_.broadcast_buffers)
    for (const at::Tensor& buffer : buffers_) (has_mean(buffer) ? averaged : copied).push_back(buffer);
  averaged = memory_of(averaged);
  copied = memory_of(copied);
  weights_.write([&] {
    // Each element once: a buffer may lie on a parameter's memory.
    for (const auto& tensors : without_overlaps(averaged)) communicator_.all_reduce(tensors, comm::ReduceOp::mean);
    if (!copied.empty()) communicator_.broadcast(copied, 0);
  });
  for (std::size_t i = 0; i < slots_.size(); ++i)
    slots_[i].pending = slots_[i].pending && parameters_[i].second.grad().defined();
}

bool ModelReducer::has_local_gradient(const at::Tensor& parameter) const {
  if (!adds_locally_) return false;
  const auto found = index_.find(parameter.unsafeGetTensorImpl());
  return found != index_.end() && slots_[found->second].pending && parameter.grad().defined();
}

void ModelReducer::forget_pass() {
  for (ParameterSlot& slot : slots_) {
    slot.pending = false;
    slot.forget_window();
  }
  adds_locally_ = false;
}

void ModelReducer::reduced_elsewhere(const std::vector<bool>& reached) {
  told_.passes += 1;
  for (std::size_t i = 0; i < slots_.size(); ++i) reached_[i] = reached[i] ? PassReport::kDense : 0;
  forget_pass();
}

std::vector<at::Tensor> ModelReducer::followed_tensors() const {
  auto tensors = synchronized_buffers();
  for (at::Tensor& weight : renormed_weights(*module_)) tensors.push_back(weight);
  return tensors;
}

bool ModelReducer::shares_gradient(const at::Tensor& parameter) const {
  const ParameterSlot& slot = slots_[index_.at(parameter.unsafeGetTensorImpl())];
  const at::Tensor& gradient = parameter.grad();
  return slot.lent.defined() && gradient.is_same(slot.lent) && refers_to(gradient, slot.view);
}

std::optional<SharedGradient> ModelReducer::shared_gradient(const at::Tensor& parameter) const {
  if (!shares_gradient(parameter)) return std::nullopt;
  const ParameterSlot& slot = slots_[index_.at(parameter.unsafeGetTensorImpl())];
  return SharedGradient{slot.view, slot.squares_known ? slot.squares : at::Tensor()};
}

void ModelReducer::shared_gradient_written(const at::Tensor& parameter) {
  slots_[index_.at(parameter.unsafeGetTensorImpl())].squares_known = false;
}

}  // namespace tandem::nn
