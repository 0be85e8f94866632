#include <algorithm>

#include "nn/gradient_reducer_parts.h"
#include "tandem/core/error.h"
#include "tandem/trace/range.h"

namespace tandem::nn {

GradientReducers::~GradientReducers() { shorten(0); }

std::shared_ptr<GradientReducer> GradientReducers::find(const torch::nn::Module& module) const {
  const auto found =
      std::find_if(all_.begin(), all_.end(), [&](const auto& reducer) { return reducer->module().get() == &module; });
  return found == all_.end() ? nullptr : *found;
}

GradientReducer* GradientReducers::find(const at::Tensor& parameter) const {
  const auto found = std::find_if(all_.begin(), all_.end(), [&](const auto& one) { return one->has(parameter); });
  return found == all_.end() ? nullptr : found->get();
}

void GradientReducers::add(const std::shared_ptr<GradientReducer>& reducer) {
  reducer->reducers_ = this;
  all_.push_back(reducer);
  turns_.push_back(reducer.get());
}

void GradientReducers::shorten(std::size_t size) {
  while (all_.size() > size) {
    // The user may keep the model, and with it the reducer, for longer than the launch.
    all_.back()->leave_launch();
    all_.back()->reducers_ = nullptr;
    std::erase(turns_, all_.back().get());
    all_.pop_back();
  }
}

void GradientReducers::before_pass() {
  for (const auto& reducer : all_) {
    if (const auto name = reducer->added_parameter())
      throw ConfigError("parameter " + *name +
                        " was added to a model after prepare(); call prepare(model) again on all ranks, before the "
                        "forward pass that uses it");
    reducer->watch_parameters();
  }
}

void GradientReducers::begin_pass() {
  for (const auto& reducer : all_) reducer->check_not_interrupted();
  arrivals_ = 0;
  for (const auto& reducer : all_) reducer->begin_pass();
}

void GradientReducers::start_ready_buckets() {
  for (GradientReducer* reducer : turns_)
    if (!reducer->start_ready_buckets()) return;
}

void GradientReducers::finish_pass(int main) {
  {
    const trace::Range range(trace::Event::gradient_wait);
    for (GradientReducer* reducer : turns_) reducer->settle();
    for (GradientReducer* reducer : turns_) reducer->collect();
    for (GradientReducer* reducer : turns_) reducer->reduce_rest(main);
    for (GradientReducer* reducer : turns_) reducer->check_finite();
  }
  for (GradientReducer* reducer : turns_) reducer->end_pass();
  // Those that had no gradient keep their places behind the others.
  const auto place = [](const GradientReducer* reducer) {
    return reducer->last_arrival_ - 1;
  };  // 0 becomes the largest
  std::stable_sort(turns_.begin(), turns_.end(), [&](const auto* a, const auto* b) { return place(a) < place(b); });
}

}  // namespace tandem::nn
