#include "nn/reducer_group.h"

#include <algorithm>
#include <utility>

#include "tandem/core/error.h"
#include "tandem/trace/range.h"

namespace tandem::nn {

ReducerGroup::ReducerGroup() {
  pass_.bucket_complete = [this] {
    for (ModelReducer* reducer : turns_)
      if (!reducer->start_complete_buckets()) return;
  };
}

ReducerGroup::~ReducerGroup() { shorten(0); }

std::shared_ptr<ModelReducer> ReducerGroup::find(const torch::nn::Module& module) const {
  const auto found =
      std::find_if(all_.begin(), all_.end(), [&](const auto& reducer) { return reducer->module().get() == &module; });
  return found == all_.end() ? nullptr : *found;
}

ModelReducer* ReducerGroup::find(const at::Tensor& parameter) const {
  const auto found = std::find_if(all_.begin(), all_.end(), [&](const auto& one) { return one->has(parameter); });
  return found == all_.end() ? nullptr : found->get();
}

std::shared_ptr<ModelReducer> ReducerGroup::add(std::shared_ptr<torch::nn::Module> module,
                                                comm::Communicator& communicator, comm::RankGroup& group,
                                                const GradientReducerOptions& options) {
  all_.push_back(std::make_shared<ModelReducer>(std::move(module), communicator, group, pass_, options));
  turns_.push_back(all_.back().get());
  return all_.back();
}

void ReducerGroup::shorten(std::size_t size) {
  while (all_.size() > size) {
    all_.back()->leave_launch();
    std::erase(turns_, all_.back().get());
    all_.pop_back();
  }
}

void ReducerGroup::before_pass() {
  for (const auto& reducer : all_) {
    if (const auto name = reducer->added_parameter())
      throw ConfigError("parameter " + *name +
                        " was added to a model after prepare(); call prepare(model) again on all ranks, before the "
                        "forward pass that uses it");
    reducer->watch_parameters();
  }
}

void ReducerGroup::begin_pass() {
  for (const auto& reducer : all_) reducer->check_not_interrupted();
  pass_.arrivals = 0;
  for (const auto& reducer : all_) reducer->begin_pass();
}

void ReducerGroup::finish_pass(int main) {
  {
    const trace::Range range(trace::Event::gradient_wait);
    for (ModelReducer* reducer : turns_) reducer->settle();
    for (ModelReducer* reducer : turns_) reducer->collect();
    for (ModelReducer* reducer : turns_) reducer->reduce_rest(main);
    for (ModelReducer* reducer : turns_) reducer->check_finite();
  }
  for (ModelReducer* reducer : turns_) reducer->end_pass();
  // Those that had no gradient keep their places behind the others.
  const auto place = [](const ModelReducer* reducer) { return reducer->last_arrival() - 1; };  // 0 becomes the largest
  std::stable_sort(turns_.begin(), turns_.end(), [&](const auto* a, const auto* b) { return place(a) < place(b); });
}

}  // namespace tandem::nn
