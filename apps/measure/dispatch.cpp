#include "measure/dispatch.h"

#include <atomic>
#include <chrono>

#include <ATen/Functions.h>

#include "tandem/runtime/accelerator.h"
#include "tandem/runtime/launch.h"

namespace measure {
namespace {

// Batches that are there already: views of one tensor.
struct Ready : torch::data::datasets::BatchDataset<Ready, at::Tensor> {
  at::Tensor rows;
  std::int64_t length;
  Ready(std::vector<std::int64_t> shape, std::int64_t global_batch, std::int64_t length) : length(length) {
    shape.insert(shape.begin(), 2 * global_batch);
    rows = at::ones(shape);
  }
  at::Tensor get_batch(c10::ArrayRef<std::size_t> indices) override {
    const std::int64_t begin = static_cast<std::int64_t>(indices.front()) % rows.size(0);
    return rows.slice(0, begin, begin + static_cast<std::int64_t>(indices.size()));
  }
  std::optional<std::size_t> size() const override { return static_cast<std::size_t>(length); }
};

}  // namespace

DispatchRate measure_dispatch(const DispatchRequest& request) {
  using Clock = std::chrono::steady_clock;
  const std::int64_t global_batch = request.ranks * request.batch_size;
  const Ready dataset(request.shape, global_batch, global_batch * request.batches);
  double seconds = 0;
  std::atomic<bool> copied{false};
  tandem::LaunchConfig config{.cpu = request.ranks, .threads_per_rank = 1, .cancel = request.cancel};
  config.data_loader.dispatch_batches = true;
  tandem::launch(config, [&](tandem::Accelerator& accelerator) {
    auto loader = accelerator.prepare(tandem::data::DataLoader(dataset, {.batch_size = request.batch_size}));
    accelerator.wait_for_everyone();
    const auto start = Clock::now();
    for (auto& batch : loader)
      if (!batch.is_alias_of(dataset.rows)) copied = true;
    accelerator.wait_for_everyone();
    if (accelerator.is_main()) seconds = std::chrono::duration<double>(Clock::now() - start).count();
  });
  return {static_cast<double>(request.ranks * request.batches) / seconds, copied};
}

}  // namespace measure
