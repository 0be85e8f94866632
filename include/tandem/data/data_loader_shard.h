#pragma once

#include <memory>
#include <utility>

#include "tandem/data/loader_base.h"

namespace tandem::data {

/// Each rank reads its own batches of the plan from its own dataset object.
template <class Batch>
class DataLoaderShard final : public LoaderBase<Batch> {
 public:
  DataLoaderShard(LoaderContext context, EpochCursor cursor, ReadBatch<Batch> read)
      : LoaderBase<Batch>(context, std::move(cursor)), read_(std::move(read)) {}

  std::unique_ptr<LoaderBase<Batch>> skip_first_batches(std::int64_t steps) override {
    return std::make_unique<DataLoaderShard>(this->context(), this->cursor().skipping(steps), read_);
  }

 protected:
  Batch fetch() override { return read_(this->cursor().indices(this->context().rank)); }

 private:
  ReadBatch<Batch> read_;
};

}  // namespace tandem::data
