#include "tandem/optim/fused_step.h"

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <typeinfo>
#include <utility>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include "nn/copy_on_write.h"
#include "nn/recording.h"
#include "nn/tensor_layout.h"

namespace tandem::optim {
namespace {

using torch::optim::AdamOptions;
using torch::optim::AdamParamState;
using torch::optim::AdamWOptions;
using torch::optim::AdamWParamState;
using torch::optim::SGDOptions;
using torch::optim::SGDParamState;

// The kernels run over memory in order.
bool fits(const at::Tensor& tensor, const at::Tensor& parameter) {
  return tensor.defined() && tensor.layout() == at::kStrided && tensor.scalar_type() == parameter.scalar_type() &&
         tensor.device() == parameter.device() && nn::same_order_in_memory(tensor, parameter);
}

bool supported(const at::Tensor& parameter) {
  const auto type = parameter.scalar_type();
  return parameter.layout() == at::kStrided && (type == at::kFloat || type == at::kDouble) &&
         (parameter.is_cpu() || parameter.is_cuda()) && parameter.is_non_overlapping_and_dense() &&
         fits(parameter.grad(), parameter);
}

// CUDA's kernels compare all strides.
at::Tensor with_strides_of(const at::Tensor& parameter, const at::Tensor& tensor) {
  return tensor.strides() == parameter.strides() ? tensor : tensor.as_strided(parameter.sizes(), parameter.strides());
}

template <class State>
State& adam_state(torch::optim::Optimizer& optimizer, const at::Tensor& parameter, bool amsgrad) {
  auto& states = optimizer.state();
  void* const key = parameter.unsafeGetTensorImpl();
  if (const auto found = states.find(key); found != states.end()) return static_cast<State&>(*found->second);
  const auto zeros = [&] { return at::zeros_like(parameter, parameter.options().requires_grad(false)); };
  auto state = std::make_unique<State>();
  state->exp_avg(zeros());
  state->exp_avg_sq(zeros());
  if (amsgrad) state->max_exp_avg_sq(zeros());
  return static_cast<State&>(*(states[key] = std::move(state)));
}

// `Rate` is the learning rate: a number, or a tensor on the device.
template <class Rate>
using AdamKernel = void (*)(at::TensorList parameters, at::TensorList gradients, at::TensorList averages,
                            at::TensorList square_averages, at::TensorList largest_square_averages,
                            at::TensorList steps, Rate lr, double beta1, double beta2, double weight_decay, double eps,
                            bool amsgrad, bool maximize, const std::optional<at::Tensor>& grad_scale,
                            const std::optional<at::Tensor>& found_inf);

void fill(at::Tensor& number, double value, c10::Device device) {
  if (!number.defined()) number = at::empty({}, at::dtype(at::kFloat).device(device));
  number.fill_(value);
}

// What a kernel on a device takes a learning rate for: a graph holds it in float32, and a step has the same result
// whether it is called or replayed.
double rate_on(c10::Device device, c10::ScalarType type, double lr) {
  return device.is_cpu() || type != at::kFloat ? lr : static_cast<double>(static_cast<float>(lr));
}

// A kernel call that was recorded: what its replays need of the host, and what they must find as it was.
template <class Options, class State>
class RecordedCall {
 public:
  RecordedCall(torch::optim::Optimizer& optimizer, std::size_t group, std::vector<at::Tensor> parameters,
               at::Tensor step, at::Tensor lr)
      : optimizer_(optimizer),
        group_(group),
        options_(options()),
        sizes_(sizes()),
        parameters_(std::move(parameters)),
        step_(std::move(step)),
        lr_(std::move(lr)) {
    for (const at::Tensor& parameter : parameters_) memory_.push_back(memory_of(parameter));
  }

  std::optional<std::string> obstacle() const {
    if (sizes() != sizes_) return "an optimizer's groups of parameters have changed";
    Options now = options();
    if (!(now.lr(options_.lr()) == options_))
      return "a setting of an optimizer other than the learning rate has changed";
    for (std::size_t i = 0; i < parameters_.size(); ++i)
      if (memory_of(parameters_[i]) != memory_[i]) return "what an optimizer knows of a parameter is not where it was";
    return std::nullopt;
  }

  void before() {
    lr_.fill_(options().lr());
    if constexpr (counts) step_.fill_(state_of(parameters_.front())->step() + 1);
  }

  void after() {
    if constexpr (counts)
      for (const at::Tensor& parameter : parameters_) {
        State& state = *state_of(parameter);
        state.step(state.step() + 1);
      }
  }

 private:
  static constexpr bool counts = !std::is_same_v<State, SGDParamState>;

  const Options& options() const { return static_cast<const Options&>(optimizer_.param_groups()[group_].options()); }

  // Of the groups.
  std::vector<std::size_t> sizes() const {
    std::vector<std::size_t> sizes;
    for (const auto& group : optimizer_.param_groups()) sizes.push_back(group.params().size());
    return sizes;
  }

  State* state_of(const at::Tensor& parameter) const {
    const auto found = optimizer_.state().find(parameter.unsafeGetTensorImpl());
    return found == optimizer_.state().end() ? nullptr : &static_cast<State&>(*found->second);
  }

  std::array<const void*, 3> memory_of(const at::Tensor& parameter) const {
    const State* const state = state_of(parameter);
    const auto data = [](const at::Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr() : nullptr; };
    if (!state) return {};
    if constexpr (counts)
      return {data(state->exp_avg()), data(state->exp_avg_sq()), data(state->max_exp_avg_sq())};
    else
      return {data(state->momentum_buffer())};
  }

  torch::optim::Optimizer& optimizer_;
  const std::size_t group_;
  const Options options_;
  const std::vector<std::size_t> sizes_;
  const std::vector<at::Tensor> parameters_;
  at::Tensor step_, lr_;
  std::vector<std::array<const void*, 3>> memory_;
};

}  // namespace

FusedStep::FusedStep(torch::optim::Optimizer& optimizer) : optimizer_(optimizer), kind_(Kind::other) {
  const std::type_info& type = typeid(optimizer);
  if (type == typeid(torch::optim::SGD)) kind_ = Kind::sgd;
  if (type == typeid(torch::optim::Adam)) kind_ = Kind::adam;
  if (type == typeid(torch::optim::AdamW)) kind_ = Kind::adamw;
}

bool FusedStep::step(nn::Recording* recording) {
  const at::NoGradGuard no_grad;
  bool fused = false;
  recording_ = recording;
  try {
    fused = step_fused();
  } catch (...) {
    empty_batches();
    throw;
  }
  // LibTorch's fused kernels do not count what they write, and a graph that has saved a weight is of no use any more.
  if (fused)
    for (std::size_t i = 0; i < used_; ++i)
      for (const at::Tensor& parameter : batches_[i].parameters) parameter.unsafeGetTensorImpl()->bump_version();
  empty_batches();
  if (!fused && !records()) optimizer_.step();
  return fused;
}

bool FusedStep::records() const { return recording_ && recording_->records(); }

// In the calls before a recording it is filled in, and each replay fills it in.
bool FusedStep::rate_is_a_tensor(Batch& batch) const {
  if (!recording_ || batch.common.type != at::kFloat) return false;
  if (!records()) fill(batch.lr, batch.common.options->get_lr(), batch.common.device);
  return true;
}

bool FusedStep::suits_all() const {
  if (kind_ == Kind::other) return false;
  for (const auto& group : optimizer_.param_groups())
    for (const at::Tensor& parameter : group.params())
      if (parameter.grad().defined() && !supported(parameter)) return false;
  return true;
}

template <class Options, class State>
void FusedStep::record(const Batch& batch) {
  const auto& groups = optimizer_.param_groups();
  const auto group = std::find_if(groups.begin(), groups.end(),
                                  [&](const auto& one) { return &one.options() == batch.common.options; });
  const auto call = std::make_shared<RecordedCall<Options, State>>(
      optimizer_, static_cast<std::size_t>(group - groups.begin()), batch.parameters, batch.step, batch.lr);
  recording_->at_each_replay({.obstacle = [call] { return call->obstacle(); },
                              .before = [call] { call->before(); },
                              .after = [call] { call->after(); }});
}

bool FusedStep::step_fused() {
  if (kind_ == Kind::other || !every_parameter_comes_once()) return false;
  // Nothing is updated before all parameters have been looked at, so that the other step can take over as if this one
  // had not been.
  const auto step_by = [this](auto gather, auto update) {
    if (!(this->*gather)()) return false;
    for (std::size_t i = 0; i < used_; ++i) (this->*update)(batches_[i]);
    return true;
  };
  if (kind_ == Kind::sgd) return step_by(&FusedStep::gather_sgd, &FusedStep::update_sgd);
  if (kind_ == Kind::adam)
    return step_by(&FusedStep::gather_adam<AdamOptions, AdamParamState>,
                   &FusedStep::update_adam<AdamOptions, AdamParamState>);
  return step_by(&FusedStep::gather_adam<AdamWOptions, AdamWParamState>,
                 &FusedStep::update_adam<AdamWOptions, AdamWParamState>);
}

// LibTorch updates a parameter that is listed twice (tied weights are) twice in a row, which one kernel call cannot.
bool FusedStep::every_parameter_comes_once() {
  std::size_t index = 0;
  bool known = true;
  for (const auto& group : optimizer_.param_groups())
    for (const at::Tensor& parameter : group.params()) {
      known = known && index < parameters_.size() && parameters_[index] == parameter.unsafeGetTensorImpl();
      index += 1;
    }
  if (known && index == parameters_.size()) return !repeated_;
  parameters_.clear();
  for (const auto& group : optimizer_.param_groups())
    for (const at::Tensor& parameter : group.params()) parameters_.push_back(parameter.unsafeGetTensorImpl());
  auto sorted = parameters_;
  std::sort(sorted.begin(), sorted.end());
  repeated_ = std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end();
  return !repeated_;
}

// The kernels read gradients, but ask for memory to write to.
at::Tensor FusedStep::gradient_of(const at::Tensor& parameter) {
  const at::Tensor& gradient = parameter.grad();
  if (!nn::is_lent(gradient)) return with_strides_of(parameter, gradient);
  at::Tensor& known = readable_[parameter.unsafeGetTensorImpl()];
  const bool fits = known.defined() && nn::refers_to(known, gradient) && known.sizes() == gradient.sizes() &&
                    known.strides() == gradient.strides() && known.scalar_type() == gradient.scalar_type();
  if (!fits) known = nn::readable(gradient);
  return with_strides_of(parameter, known);
}

FusedStep::Batch& FusedStep::batch_for(const Common& common) {
  // From the last: neighbours mostly go together.
  for (std::size_t i = used_; i > 0; --i)
    if (batches_[i - 1].common == common) return batches_[i - 1];
  if (used_ == batches_.size()) batches_.emplace_back(common);
  Batch& batch = batches_[used_++];
  for (at::Tensor* number : {&batch.step, &batch.lr})
    if (number->defined() && number->device() != common.device) number->reset();
  batch.common = common;
  return batch;
}

void FusedStep::empty_batches() {
  for (std::size_t i = 0; i < used_; ++i) {
    Batch& batch = batches_[i];
    for (auto* list : {&batch.parameters, &batch.gradients, &batch.averages, &batch.square_averages,
                       &batch.largest_square_averages, &batch.steps})
      list->clear();
    batch.states.clear();
  }
  used_ = 0;
}

bool FusedStep::gather_sgd() {
  for (const auto& group : optimizer_.param_groups()) {
    const bool momentum = static_cast<const SGDOptions&>(group.options()).momentum() != 0;
    for (const at::Tensor& parameter : group.params()) {
      if (!parameter.grad().defined()) continue;
      if (!supported(parameter) || (records() && parameter.scalar_type() != at::kFloat)) return false;
      const auto found = optimizer_.state().find(parameter.unsafeGetTensorImpl());
      const bool updated = momentum && found != optimizer_.state().end();
      if (records() && momentum && !updated) return false;  // its buffer would be made anew in each replay
      Batch& batch = batch_for({&group.options(), parameter.device(), parameter.scalar_type(), updated});
      if (updated) {
        const at::Tensor& buffer = static_cast<SGDParamState&>(*found->second).momentum_buffer();
        if (!fits(buffer, parameter)) return false;
        batch.averages.push_back(with_strides_of(parameter, buffer));
      }
      batch.parameters.push_back(parameter);
      batch.gradients.push_back(gradient_of(parameter));
    }
  }
  return true;
}

void FusedStep::update_sgd(Batch& batch) {
  const auto& options = static_cast<const SGDOptions&>(*batch.common.options);
  const bool first_momentum = options.momentum() != 0 && batch.common.updates == 0;
  if (first_momentum)
    for (const at::Tensor& parameter : batch.parameters)
      batch.averages.push_back(at::empty_like(parameter, parameter.options().requires_grad(false)));
  const auto update = [&](const auto& lr) {
    at::_fused_sgd_(batch.parameters, batch.gradients, batch.averages, options.weight_decay(), options.momentum(), lr,
                    options.dampening(), options.nesterov(), /*maximize=*/false, first_momentum);
  };
  if (rate_is_a_tensor(batch))
    update(batch.lr);
  else
    update(rate_on(batch.common.device, batch.common.type, options.lr()));
  if (records()) record<SGDOptions, SGDParamState>(batch);
  if (!first_momentum) return;
  for (std::size_t i = 0; i < batch.parameters.size(); ++i) {
    auto state = std::make_unique<SGDParamState>();
    state->momentum_buffer(batch.averages[i]);
    optimizer_.state()[batch.parameters[i].unsafeGetTensorImpl()] = std::move(state);
  }
}

template <class Options, class State>
bool FusedStep::gather_adam() {
  for (const auto& group : optimizer_.param_groups()) {
    const bool amsgrad = static_cast<const Options&>(group.options()).amsgrad();
    for (const at::Tensor& parameter : group.params()) {
      if (!parameter.grad().defined()) continue;
      if (!supported(parameter)) return false;
      const bool known = optimizer_.state().count(parameter.unsafeGetTensorImpl()) > 0;
      if (records() && (!known || parameter.scalar_type() != at::kFloat)) return false;
      State& state = adam_state<State>(optimizer_, parameter, amsgrad);
      if (!fits(state.exp_avg(), parameter) || !fits(state.exp_avg_sq(), parameter)) return false;
      if (amsgrad && !fits(state.max_exp_avg_sq(), parameter)) return false;
      Batch& batch = batch_for({&group.options(), parameter.device(), parameter.scalar_type(), state.step()});
      batch.parameters.push_back(parameter);
      batch.gradients.push_back(gradient_of(parameter));
      batch.averages.push_back(with_strides_of(parameter, state.exp_avg()));
      batch.square_averages.push_back(with_strides_of(parameter, state.exp_avg_sq()));
      if (amsgrad) batch.largest_square_averages.push_back(with_strides_of(parameter, state.max_exp_avg_sq()));
      batch.states.push_back(&state);
    }
  }
  return true;
}

template <class Options, class State>
void FusedStep::update_adam(Batch& batch) {
  const auto& options = static_cast<const Options&>(*batch.common.options);
  const auto [beta1, beta2] = options.betas();
  const std::int64_t step = batch.common.updates + 1;
  if (!records()) fill(batch.step, static_cast<double>(step), batch.common.device);
  batch.steps.assign(batch.parameters.size(), batch.step);
  const auto update = [&]<class Rate>(AdamKernel<Rate> adam, AdamKernel<Rate> adamw, Rate lr) {
    (std::is_same_v<Options, AdamWOptions> ? adamw : adam)(
        batch.parameters, batch.gradients, batch.averages, batch.square_averages, batch.largest_square_averages,
        batch.steps, lr, beta1, beta2, options.weight_decay(), options.eps(), options.amsgrad(), /*maximize=*/false,
        /*grad_scale=*/{}, /*found_inf=*/{});
  };
  if (rate_is_a_tensor(batch))
    update.template operator()<const at::Tensor&>(at::_fused_adam_, at::_fused_adamw_, batch.lr);
  else
    update.template operator()<double>(at::_fused_adam_, at::_fused_adamw_,
                                       rate_on(batch.common.device, batch.common.type, options.lr()));
  if (records())
    record<Options, State>(batch);
  else
    for (auto* state : batch.states) static_cast<State*>(state)->step(step);
}

}  // namespace tandem::optim
