#include "tandem/data/prepared_data_loader.h"

#include "data/loader_base.h"

namespace tandem::data {
namespace detail {

LoaderLoop::LoaderLoop(std::shared_ptr<LoaderBase> loader) : loader_(std::move(loader)) {
  loader_->start();
  epoch_ = loader_->last_begun();
  fetch();
}

LoaderLoop::LoaderLoop(LoaderLoop&& other) noexcept
    : loader_(std::exchange(other.loader_, nullptr)), epoch_(other.epoch_), batch_(std::move(other.batch_)) {}

LoaderLoop::~LoaderLoop() {
  if (loader_ && is_in_epoch()) loader_->leave();
}

void LoaderLoop::advance() {
  if (!batch_) return;
  if (!is_in_epoch()) throw_overtaken(loader_->context().name);
  fetch();
}

// Not so once another epoch has begun, which is another loop's.
bool LoaderLoop::is_in_epoch() const { return loader_->last_begun() == epoch_; }

void LoaderLoop::fetch() {
  batch_ = AnyBatch();  // gives the last batch's memory back before the next one is made
  try {
    batch_ = loader_->next();
  } catch (...) {
    loader_->leave();
    throw;
  }
}

}  // namespace detail

PreparedDataLoaderBase::PreparedDataLoaderBase(std::shared_ptr<LoaderBase> loader) : loader_(std::move(loader)) {}

LoaderBase& loader_of(const PreparedDataLoaderBase& loader) { return *loader.loader_; }

std::shared_ptr<LoaderBase> PreparedDataLoaderBase::without_first(std::int64_t steps) const {
  return loader_->skip_first_batches(steps);
}

std::int64_t PreparedDataLoaderBase::len() const { return loader_->len(); }

std::int64_t PreparedDataLoaderBase::steps_without_batch() const { return loader_->steps_without_batch(); }

std::int64_t PreparedDataLoaderBase::remainder() const { return loader_->remainder(); }

bool PreparedDataLoaderBase::end_of_dataloader() const { return loader_->status().ends_epoch(); }

std::int64_t PreparedDataLoaderBase::total_batch_size() const { return loader_->global_batch_size(); }

std::int64_t PreparedDataLoaderBase::total_dataset_length() const { return loader_->planner().options().length; }

std::int64_t PreparedDataLoaderBase::epoch() const { return loader_->epoch(); }

void PreparedDataLoaderBase::set_epoch(std::int64_t epoch) { loader_->set_epoch(epoch); }

LoaderState PreparedDataLoaderBase::state_dict() const { return loader_->state(); }

void PreparedDataLoaderBase::load_state_dict(const LoaderState& state) { loader_->load_state(state); }

}  // namespace tandem::data
