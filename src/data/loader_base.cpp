#include "data/loader_base.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <utility>

#include "tandem/core/error.h"
#include "tandem/trace/range.h"

namespace tandem::data {
namespace {

// Another one in the process each time.
std::uint64_t next_loader_number() noexcept {
  static std::atomic<std::uint64_t> numbers{0};
  return numbers.fetch_add(1, std::memory_order_relaxed) + 1;
}

// Kernels may add up in another order where memory begins elsewhere; LibTorch's own begins at multiples of this.
constexpr std::uintptr_t kAlignment = 64;

// As every program's memory has it: what the dataset's began at, and where a view of it lies, is gone.
at::Tensor aligned(const at::Tensor& tensor) {
  if (tensor.layout() != at::kStrided) return tensor;
  if (!tensor.is_non_overlapping_and_dense()) return tensor.clone(at::MemoryFormat::Contiguous);
  return reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr()) % kAlignment == 0 ? tensor : tensor.clone();
}

}  // namespace

void check_loader_state(const LoaderState& state, std::int64_t global_batch_size) {
  if (state.epoch < 0 || state.step < 0)
    throw ConfigError("a loader's state has epoch " + std::to_string(state.epoch) + " and step " +
                      std::to_string(state.step) + "; they are 0 or more");
  if (state.global_batch_size != global_batch_size)
    throw ConfigError("a loader's state comes from a global batch of " + std::to_string(state.global_batch_size) +
                      " samples, this loader has " + std::to_string(global_batch_size) +
                      "; keep the global batch when the number of ranks changes");
}

void throw_overtaken(const std::string& loader) {
  throw DataError("a loop over " + loader +
                  " cannot go on, because another loop over it was begun within: it ended the epoch. Prepare another "
                  "loader of the DataLoader for the inner loop");
}

LoaderBase::LoaderBase(LoaderContext context, std::shared_ptr<StepPlanner> planner, std::int64_t stream_global_batch)
    : context_(std::move(context)),
      planner_(std::move(planner)),
      stream_global_batch_(stream_global_batch),
      counter_(std::make_shared<Counter>(Counter{.number = next_loader_number()})) {
  const bool on_gpu = context_.device && !context_.device->is_cpu();
  if (on_gpu && context_.non_blocking) copies_.emplace(*context_.device, context_.pin_memory);
}

void LoaderBase::share_epochs_with(LoaderBase& skipping, std::int64_t steps) const {
  if (steps < 0) throw ConfigError("skip_first_batches(" + std::to_string(steps) + "): use 0 or more");
  skipping.counter_ = counter_;
  skipping.skip_ = skip_ + steps;
}

void LoaderBase::start() {
  const trace::Range range(trace::Event::data_wait);
  context_.group->token().check();
  if (context_.on_epoch) context_.on_epoch();
  if (counter_->running) counter_->running->leave();
  counter_->begun += 1;
  first_step_ = std::max(std::exchange(counter_->resume_at, std::nullopt).value_or(0), skip_);
  stopped_ = false;
  handed_out_ = first_step_;
  number_ = counter_->begun;
  begin_epoch({.number = number_, .epoch = counter_->epoch, .first_step = handed_out_});
  position_ = planner_ && reads() ? planner_->position(number_) : SamplerPosition();
  // An iterable's workers may be reading already: it is told with the last step.
  status_ = StepInfo{.step = -1, .remainder = planner_ ? known_remainder() : -1};
  running_ = true;
  counter_->running = this;
  context_.active->enter(&status_);
}

detail::AnyBatch LoaderBase::next() {
  const trace::Range range(trace::Event::data_wait);
  context_.group->token().check();
  if (!running_ || !may_take()) return {};
  auto step = take_on_device();
  if (!step) {
    if (!status_.ends_epoch()) used_up();  // nobody took a last sample, but the epoch is all the same used up
    if (status_.step < 0) status_.remainder = known_remainder();
    counter_->epoch += 1;
    leave();
    return {};
  }
  if (context_.align) step->batch.for_each_tensor([](at::Tensor& tensor) { tensor = aligned(tensor); });
  status_ = step->info;
  handed_out_ += status_.ends_step() ? 1 : 0;
  if (status_.ends_epoch()) used_up();
  if (context_.on_batch) context_.on_batch();
  return std::move(step->batch);
}

// False where a session stops: the epoch is left, to go on from here.
bool LoaderBase::may_take() {
  if (!context_.before_batch || !status_.ends_step() ||
      context_.before_batch({counter_->number, &status_, counter_->epoch, handed_out_, steps()}))
    return true;
  const LoaderState here = state();
  leave();
  load_state(here);
  stopped_ = true;
  return false;
}

std::optional<RankStep> LoaderBase::take_on_device() {
  if (copies_) return copies_->next([this] { return take(); }, [this] { return ready(); });
  auto step = take();
  if (step && context_.device)
    step->batch.for_each_tensor([&](at::Tensor& tensor) { tensor = tensor.to(*context_.device); });
  return step;
}

void LoaderBase::leave() {
  if (!std::exchange(running_, false)) return;
  counter_->running = nullptr;
  context_.active->leave(&status_);
  if (context_.on_batch) context_.on_batch();
  if (copies_) copies_->drop();
  end_epoch();
}

LoaderState LoaderBase::state() const {
  if (counter_->running && counter_->running != this) return counter_->running->state();
  if (running_ && !status_.ends_step())
    throw ConfigError(
        "the state of " + context_.name +
        " within a global batch, of which other logical shards are to come; in exact mode ask for it when "
        "the window has closed");
  const SamplerPosition here = running_              ? position_
                               : planner_ && reads() ? planner_->position_before(counter_->begun + 1)
                                                     : SamplerPosition();
  return {counter_->epoch, running_ ? handed_out_ : counter_->resume_at.value_or(0), global_batch_size(), here.state,
          here.sampler};
}

void LoaderBase::load_state(const LoaderState& state) {
  check_loader_state(state, global_batch_size());
  if (counter_->running) counter_->running->leave();
  counter_->epoch = state.epoch;
  counter_->resume_at = state.step;
  counter_->loads += 1;
  if (planner_ && reads())
    planner_->restore(counter_->begun + 1, counter_->loads, {state.generator, state.sampler}, state.epoch);
}

std::int64_t LoaderBase::len() const { return std::max<std::int64_t>(planner().len(context_.rank) - skip_, 0); }

std::int64_t LoaderBase::global_batch_size() const {
  return planner_ ? planner_->global_batch_size() : stream_global_batch_;
}

std::int64_t LoaderBase::remainder() const {
  return planner_ && planner_->global_batch_size() > 0 ? EpochPlan(planner_->options()).remainder() : status_.remainder;
}

std::int64_t LoaderBase::steps_without_batch() const {
  if (stopped_) return 0;
  const RankShards shards{context_.rank, context_.group->world_size(), context_.shards};
  std::int64_t missing = 0;
  for (int i = 0; i < shards.each; ++i) {
    const std::int64_t mine = std::max(planner().steps(shards.shard(i)), first_step_);
    missing += std::max<std::int64_t>(planner().steps(0) - mine, 0);
  }
  return missing;
}

const StepPlanner& LoaderBase::planner() const {
  if (!planner_) throw DataError("an iterable dataset does not know its length");
  return *planner_;
}

void LoaderBase::used_up() {
  if (planner_ && reads()) planner_->exhausted(number_);
}

// Of an epoch; -1: not known.
std::int64_t LoaderBase::steps() const { return planner_ ? planner_->len(context_.rank) : -1; }

}  // namespace tandem::data
