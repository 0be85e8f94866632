#include "tandem/optim/exponential_moving_average.h"

#include <algorithm>
#include <set>

#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "nn/tensor_layout.h"
#include "tandem/core/error.h"

namespace tandem::optim {

namespace {

// Bytes of its storage that a tensor spans.
struct Span {
  std::size_t begin, end;
};

Span span_of(const at::Tensor& tensor) {
  const std::size_t begin = static_cast<std::size_t>(tensor.storage_offset()) * tensor.element_size();
  return {begin, begin + at::detail::computeStorageNbytes(tensor.sizes(), tensor.strides(), tensor.element_size())};
}

}  // namespace

void ExponentialMovingAverage::Kept::add(const std::string& name, const at::Tensor& value, const at::Tensor& keep) {
  names.push_back(name);
  values.push_back(value);
  kept.push_back(keep);
}

ExponentialMovingAverage::ExponentialMovingAverage(const torch::nn::Module& model,
                                                   ExponentialMovingAverageOptions options)
    : options_(options) {
  if (!(options.decay >= 0 && options.decay <= 1))
    throw ConfigError("decay " + std::to_string(options.decay) + " is out of range; use 0 to 1");
  // Tied weights have several names; exchanging them twice would mix up what belongs where.
  std::set<const void*> seen;
  const auto first_time = [&](const at::Tensor& tensor) { return seen.insert(tensor.unsafeGetTensorImpl()).second; };
  for (const auto& parameter : model.named_parameters()) {
    if (!first_time(parameter.value())) continue;
    const bool has_mean = parameter.value().is_floating_point() || parameter.value().is_complex();
    (has_mean ? averaged_ : copied_).add(parameter.key(), parameter.value(), parameter.value().detach().clone());
  }
  for (const auto& buffer : model.named_buffers())
    if (buffer.value().layout() == at::kStrided && first_time(buffer.value())) add_buffer(buffer.key(), buffer.value());
}

// On the memory of a parameter, what it shows is to be the average while that is in the model.
void ExponentialMovingAverage::add_buffer(const std::string& name, const at::Tensor& buffer) {
  const Span its = span_of(buffer);
  for (std::size_t i = 0; i < averaged_.values.size(); ++i) {
    const at::Tensor &parameter = averaged_.values[i], &average = averaged_.kept[i];
    if (!parameter.has_storage() || !parameter.storage().is_alias_of(buffer.storage())) continue;
    const Span all = span_of(parameter);
    if (its.end <= all.begin || all.end <= its.begin) continue;
    if (its.begin < all.begin || its.end > all.end || !parameter.is_non_overlapping_and_dense())
      throw ConfigError("an average of buffer '" + name +
                        "', which has a part of its memory in common with parameter '" + averaged_.names[i] +
                        "', cannot be shown; make it a part of that parameter or a copy");
    const auto offset = (its.begin - all.begin) / buffer.element_size();
    return shown_.add(
        name, buffer,
        at::empty({0}, buffer.options().requires_grad(false))
            .set_(average.storage(), static_cast<std::int64_t>(offset), buffer.sizes(), buffer.strides()));
  }
  copied_.add(name, buffer, buffer.detach().clone());
}

void ExponentialMovingAverage::update() {
  check_not_swapped("update");
  const at::NoGradGuard no_grad;
  const auto t = static_cast<double>(updates_);
  const double decay = options_.warm_up ? std::min(options_.decay, (1 + t) / (10 + t)) : options_.decay;
  if (!averaged_.kept.empty()) at::_foreach_lerp_(averaged_.kept, averaged_.values, 1 - decay);
  if (!copied_.kept.empty()) at::_foreach_copy_(copied_.kept, copied_.values);
  updates_ += 1;
}

void ExponentialMovingAverage::swap() {
  const at::NoGradGuard no_grad;
  for (Kept* list : {&averaged_, &copied_, &shown_})
    for (std::size_t i = 0; i < list->kept.size(); ++i) {
      // Memory is exchanged, not values: ranks may share the memory of their weights, and each swaps when it likes.
      const at::Tensor value = nn::alias_of(list->values[i]);
      list->values[i].set_data(list->kept[i]);
      list->kept[i] = value;
    }
  swapped_ = !swapped_;
}

nn::NamedTensors ExponentialMovingAverage::averages() const {
  check_not_swapped("averages");
  nn::NamedTensors result;
  for (const Kept* list : {&averaged_, &copied_})
    for (std::size_t i = 0; i < list->kept.size(); ++i) result.emplace_back(list->names[i], list->kept[i]);
  return result;
}

void ExponentialMovingAverage::load(const nn::NamedTensors& averages, std::int64_t updates) {
  check_not_swapped("load");
  const at::NoGradGuard no_grad;
  const auto find = [&](const std::string& name, const at::Tensor& kept) {
    const auto found =
        std::find_if(averages.begin(), averages.end(), [&](const auto& named) { return named.first == name; });
    if (found == averages.end()) throw CheckpointError("there is no average of '" + name + "'");
    if (found->second.sizes() != kept.sizes())
      throw CheckpointError("the average of '" + name + "' has the shape " + c10::str(found->second.sizes()) +
                            "; the model's has " + c10::str(kept.sizes()));
    return found->second;
  };
  // All are looked for before any is overwritten.
  std::vector<std::pair<at::Tensor, at::Tensor>> copies;
  for (const Kept* list : {&averaged_, &copied_})
    for (std::size_t i = 0; i < list->kept.size(); ++i)
      copies.emplace_back(list->kept[i], find(list->names[i], list->kept[i]));
  for (auto& [kept, loaded] : copies) kept.copy_(loaded);
  updates_ = updates;
}

c10::IValue ExponentialMovingAverage::state_dict() const {
  c10::impl::GenericDict tensors(c10::AnyType::get(), c10::AnyType::get());
  for (const auto& [name, average] : averages()) tensors.insert(name, average);
  c10::impl::GenericDict state(c10::AnyType::get(), c10::AnyType::get());
  state.insert("updates", updates_);
  state.insert("averages", tensors);
  return state;
}

void ExponentialMovingAverage::load_state_dict(const c10::IValue& state) {
  const auto of = [&](const char* name) {
    if (!state.isGenericDict() || !state.toGenericDict().contains(name))
      throw CheckpointError(std::string("the state of an ExponentialMovingAverage has no '") + name + "'");
    return state.toGenericDict().at(name);
  };
  const c10::IValue tensors = of("averages"), updates = of("updates");
  if (!tensors.isGenericDict() || !updates.isInt())
    throw CheckpointError("the state of an ExponentialMovingAverage has averages or updates of another kind");
  nn::NamedTensors averages;
  for (const auto& item : tensors.toGenericDict())
    if (item.key().isString() && item.value().isTensor())
      averages.emplace_back(item.key().toStringRef(), item.value().toTensor());
  load(averages, updates.toInt());
}

void ExponentialMovingAverage::check_not_swapped(const char* call) const {
  if (swapped_)
    throw ConfigError(std::string(call) +
                      " of an ExponentialMovingAverage whose averages are in the model; swap back first");
}

}  // namespace tandem::optim
