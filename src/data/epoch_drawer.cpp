#include "data/epoch_drawer.h"

#include <algorithm>
#include <string>
#include <typeinfo>
#include <utility>

#include <c10/util/Type.h>

#include "tandem/core/error.h"
#include "tandem/rng/generators.h"

namespace tandem::data {
namespace {

// What samplers draw has a place of its own among the keys of KeyedGenerator: datasets have epochs from 0.
constexpr std::int64_t kOrders = -1;

bool is_own(const Sampler& sampler) {
  const std::type_info& type = typeid(sampler);
  return type == typeid(SequentialSampler) || type == typeid(RandomSampler) || type == typeid(SeedableRandomSampler);
}

void add(std::vector<DrawnEpochs>& drawn, std::int64_t epoch) {
  if (drawn.size() > 1 && drawn.back().count == 1) {  // all is known of it now
    const DrawnEpochs last = drawn.back();
    DrawnEpochs& run = drawn[drawn.size() - 2];
    const std::int64_t stride = run.count == 1 ? last.first - run.first : run.stride;
    if (last.exhausted == run.exhausted && last.first == run.first + run.count * stride &&
        (stride == 0 || stride == 1)) {
      run.stride = stride;
      run.count += 1;
      drawn.pop_back();
    }
  }
  drawn.push_back({.first = epoch});
}

struct DrawnEpoch {
  std::int64_t epoch;
  bool exhausted;
  bool operator==(const DrawnEpoch&) const = default;
};

std::vector<DrawnEpoch> one_by_one(const std::vector<DrawnEpochs>& drawn) {
  std::vector<DrawnEpoch> all;
  for (const DrawnEpochs& run : drawn)
    for (std::int64_t i = 0; i < run.count; ++i) all.push_back({run.first + i * run.stride, run.exhausted});
  return all;
}

std::int64_t count_of(const std::vector<DrawnEpochs>& drawn) {
  std::int64_t count = 0;
  for (const DrawnEpochs& run : drawn) count += run.count;
  return count;
}

// The epochs before `epoch`, each used to its end: what a state that does not say it most likely had.
std::vector<DrawnEpochs> all_before(std::int64_t epoch) {
  if (epoch == 0) return {};
  return {{.first = 0, .count = epoch, .stride = 1, .exhausted = true}};
}

}  // namespace

EpochDrawer::EpochDrawer(const EpochPlanOptions& options, std::shared_ptr<Sampler> sampler, std::uint64_t seed)
    : options_(options),
      sampler_(std::move(sampler)),
      recorded_(!is_own(*sampler_)),
      hears_the_end_(typeid(*sampler_) != typeid(TorchSampler)),
      seed_(seed) {}

EpochDrawer::EpochDrawer(const EpochPlanOptions& options, std::shared_ptr<BatchSampler> sampler, std::uint64_t seed)
    : options_(options), batch_sampler_(std::move(sampler)), recorded_(true), seed_(seed) {}

std::shared_ptr<const EpochSteps> EpochDrawer::ask(std::int64_t epoch) {
  const rng::KeyedGenerator generator(seed_, kOrders, 2 * count_of(drawn_));
  if (batch_sampler_) return std::make_shared<BatchSampledSteps>(batch_sampler_->batches(epoch), options_);
  EpochOrder order = sampler_->begin(options_.length, epoch, options_.dispatch);
  if (const auto length = order.length(); length && *length != options_.length)
    throw DataError("the sampler gave an order of " + std::to_string(*length) + " samples, " +
                    std::to_string(options_.length) + " were expected");
  return std::make_shared<SampledSteps>(EpochPlan(options_), std::move(order));
}

std::shared_ptr<const EpochSteps> EpochDrawer::draw(std::int64_t epoch) {
  at::Tensor before = state();
  auto steps = ask(epoch);
  before_last_ = std::move(before);
  if (recorded_) {
    add(drawn_, epoch);
    order_ = steps->fingerprint();
    last_ = steps;
  }
  return steps;
}

void EpochDrawer::exhausted(bool before) {
  if (!hears_the_end_) return;
  if (recorded_ && !before && !drawn_.empty()) drawn_.back().exhausted = true;
  const rng::KeyedGenerator generator(seed_, kOrders, 2 * count_of(drawn_) - 1);
  sampler_->exhausted();
}

SamplerPosition EpochDrawer::within() const {
  if (!recorded_) return {before_last_, {}};
  return {before_last_, SamplerState{seed_, drawn_, order_, true}};
}

SamplerPosition EpochDrawer::after() const {
  if (!recorded_) return {state(), {}};
  return {drawn_.empty() ? state() : before_last_, SamplerState{seed_, drawn_, order_, false}};
}

std::shared_ptr<const EpochSteps> EpochDrawer::go_to(const SamplerPosition& position, std::int64_t epoch) {
  if (!recorded_) {
    set_state(position.state);
    return nullptr;
  }
  const SamplerState wanted = position.sampler.value_or(SamplerState{.seed = seed_, .drawn = all_before(epoch)});
  if (wanted.drawn.empty()) {
    if (!drawn_.empty() && !tells_state() && !position.state.defined())
      fail("cannot be set back to before its first epoch");
    set_state(position.state);
    seed_ = wanted.seed;
    drawn_.clear();
    order_ = 0;
    return nullptr;
  }
  if (wanted.seed == seed_ && wanted.drawn == drawn_ && wanted.order == order_) return wanted.running ? last_ : nullptr;
  auto steps = draw_again(wanted, position.sampler ? position.state : at::Tensor());
  if (!wanted.running) {
    if (wanted.drawn.back().exhausted) exhausted(false);
    if (!position.sampler) set_state(position.state);  // of a state that says no more, it is that of the next epoch
    return nullptr;
  }
  return steps;
}

// Draws the last of the epochs that are wanted, so that the sampler is where it was then.
std::shared_ptr<const EpochSteps> EpochDrawer::draw_again(const SamplerState& wanted, const at::Tensor& state) {
  std::vector<DrawnEpochs> before = wanted.drawn;
  DrawnEpochs& run = before.back();
  const std::int64_t last = run.first + (run.count - 1) * run.stride;
  run.count -= 1;
  if (run.count == 0) before.pop_back();
  const auto fits = [&] { return wanted.order == 0 || order_ == wanted.order; };
  const std::string other = "gave another order for epoch " + std::to_string(last) + " than before";
  if (!tells_state() && draw_up_to(before, wanted.seed)) {  // what it remembers comes with the epochs
    if (auto steps = draw(last); fits()) return steps;
    if (!state.defined()) fail(other);
  }
  set_state(state);
  seed_ = wanted.seed;
  drawn_ = before;
  auto steps = draw(last);
  if (!fits()) fail(other);
  return steps;
}

// Draws those of `epochs` that have not been; false when others have been drawn already.
bool EpochDrawer::draw_up_to(const std::vector<DrawnEpochs>& epochs, std::uint64_t seed) {
  constexpr std::int64_t kMost = 10'000'000;
  if (count_of(epochs) > kMost) fail("would have to be asked for more than ten million epochs again");
  const auto here = one_by_one(drawn_), there = one_by_one(epochs);
  if (!here.empty() && seed_ != seed) return false;
  if (here.size() > there.size() || !std::equal(here.begin(), here.end(), there.begin())) return false;
  seed_ = seed;
  for (std::size_t i = here.size(); i < there.size(); ++i) {
    draw(there[i].epoch);
    if (there[i].exhausted) exhausted(false);
  }
  return true;
}

at::Tensor EpochDrawer::state() const { return sampler_ ? sampler_->state() : batch_sampler_->state(); }

void EpochDrawer::set_state(const at::Tensor& state) {
  if (!state.defined()) return;
  const at::Tensor own = state.clone();  // for the sampler to keep
  sampler_ ? sampler_->set_state(own) : batch_sampler_->set_state(own);
}

bool EpochDrawer::tells_state() const { return sampler_ ? sampler_->tells_state() : batch_sampler_->tells_state(); }

void EpochDrawer::fail(const std::string& problem) const {
  const std::string name =
      sampler_ ? c10::demangle(typeid(*sampler_).name()) : c10::demangle(typeid(*batch_sampler_).name());
  throw DataError(
      "a loader's state cannot go on: its sampler (" + name + ") " + problem +
      ", so that samples would come twice or not at all. Its order depends on what is not saved: override "
      "state() and set_state() (of a torch::data sampler: save() and load()), or draw from LibTorch's default "
      "generators only and have tells_state() return true");
}

}  // namespace tandem::data
