#include "runtime/exact_trace.h"

#include <memory>

#include "core/word_hash.h"

namespace tandem {
namespace {

std::uint64_t hash_of(const rng::RankGenerators& generators) {
  WordHash hash;
  hash.add(hash_of_tensor(generators.cpu.get_state()));
  for (const at::Generator& generator : generators.cuda)
    if (generator.defined()) hash.add(hash_of_tensor(generator.get_state()));
  return hash.value();
}

}  // namespace

ExactTrace::ExactTrace(RankContext& context, const TrainingParts& parts, std::int64_t most)
    : context_(context), parts_(parts), most_(most) {}

void ExactTrace::end_window() {
  if (!std::exchange(is_open_, false)) return;
  if (is_done()) throw EnoughWindows("all windows to be compared are made");
  add_state(open_);
  windows_.push_back(std::exchange(open_, {}));
}

void ExactTrace::add_state(TracedWindow& window) const {
  int number = 0;
  for (const auto& model : parts_.reducers) {
    number += 1;
    const std::string of_model = parts_.reducers.size() > 1 ? " of model " + std::to_string(number) : "";
    for (const auto& weight : model->module()->named_parameters())
      window.state.emplace_back("weight " + weight.key() + of_model, hash_of_tensor(weight.value()));
    for (const auto& buffer : model->module()->named_buffers())
      window.state.emplace_back("buffer " + buffer.key() + of_model, hash_of_tensor(buffer.value()));
  }
  window.state.emplace_back("the generator outside of logical shards", hash_of(context_.shards->outside()));
  const auto& shards = context_.shards->of_shards();
  for (int i = 0; i < static_cast<int>(shards.size()); ++i)
    window.generators[context_.rank + i * context_.world_size()] = hash_of(shards[static_cast<std::size_t>(i)]);
}

void ExactTrace::begin_micro_batch() {
  is_open_ = true;
  if (is_done()) return;
  std::vector<std::shared_ptr<torch::nn::Module>> models;
  for (const auto& model : parts_.reducers) models.push_back(model->module());
  operators_.name_layers(models);
  operators_.begin_forward();
}

void ExactTrace::before_pass() {
  if (!is_done()) operators_.begin_backward();
}

void ExactTrace::after_pass() {
  if (is_done()) return;
  const int shard = context_.window.sub_step() * context_.world_size() + context_.rank;
  auto& calls = open_.calls[shard];
  for (TracedCall& call : operators_.take()) calls.push_back(std::move(call));
  operators_.begin_forward();  // perhaps of another pass
}

void ExactTrace::end_micro_batch() {
  operators_.pause();
  operators_.take();
}

}  // namespace tandem
