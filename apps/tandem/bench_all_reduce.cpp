#include "bench_all_reduce.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <sstream>

#include <ATen/Functions.h>

#include "measure/statistics.h"
#include "tandem/comm/communicator.h"
#include "tandem/core/error.h"
#include "tandem/runtime/accelerator.h"
#include "tandem/runtime/launch.h"
#include "tandem/runtime/launch_config.h"

namespace tandem_tool {
namespace {

constexpr int kWarmUp = 5, kFewest = 11, kMost = 20'000;
constexpr double kSecondsPerSize = 0.3;

double median_of(int calls, const std::function<void()>& work) {
  std::vector<double> seconds;
  for (int i = 0; i < calls; ++i) seconds.push_back(measure::seconds_of(work));
  std::nth_element(seconds.begin(), seconds.begin() + calls / 2, seconds.end());
  return seconds[static_cast<std::size_t>(calls / 2)];
}

int calls_in(double seconds_each) {
  return static_cast<int>(std::clamp(kSecondsPerSize / std::max(seconds_each, 1e-9), double{kFewest}, double{kMost}));
}

// Collective.
void check_sum(tandem::Accelerator& accelerator, at::Tensor& tensor) {
  tensor.fill_(accelerator.rank() + 1);
  accelerator.communicator().all_reduce(tensor, tandem::comm::ReduceOp::sum);
  const int ranks = accelerator.world_size();
  if (!tensor.eq(ranks * (ranks + 1) / 2).all().item<bool>())
    throw tandem::CollectiveError("an all-reduce of " + std::to_string(tensor.nbytes()) + " bytes gave a wrong sum");
  tensor.zero_();  // sums of zeros neither overflow nor become denormal
}

// Collective. The figures are rank 0's to use.
AllReduceTime time_of(tandem::Accelerator& accelerator, std::int64_t bytes) {
  at::Tensor tensor = at::empty({bytes / 4}, at::kFloat);
  check_sum(accelerator, tensor);
  auto& communicator = accelerator.communicator();
  const auto reduce = [&] { communicator.all_reduce(tensor, tandem::comm::ReduceOp::sum); };
  for (int i = 0; i < kWarmUp; ++i) reduce();
  at::Tensor each = at::scalar_tensor(measure::seconds_of(reduce), at::kDouble);
  communicator.all_reduce(each, tandem::comm::ReduceOp::max);
  at::Tensor seconds = at::scalar_tensor(median_of(calls_in(each.item<double>()), reduce), at::kDouble);
  communicator.all_reduce(seconds, tandem::comm::ReduceOp::max);

  double copying = 0;
  if (accelerator.is_main()) {
    const at::Tensor copy = at::zeros_like(tensor);
    const auto run = [&] { std::memcpy(copy.mutable_data_ptr(), tensor.const_data_ptr(), tensor.nbytes()); };
    run();
    copying = median_of(calls_in(measure::seconds_of(run)), run);
  }
  accelerator.wait_for_everyone();
  return {accelerator.world_size(), bytes, seconds.item<double>(), copying};
}

}  // namespace

void measure_all_reduces(const AllReduceRequest& request, const std::function<void(const AllReduceTime&)>& on_result) {
  tandem::launch({.cpu = request.ranks, .threads_per_rank = 1, .cancel = request.cancel},
                 [&](tandem::Accelerator& accelerator) {
                   for (const std::int64_t bytes : request.bytes) {
                     const AllReduceTime result = time_of(accelerator, bytes);
                     if (accelerator.is_main()) on_result(result);
                   }
                 });
}

std::vector<std::int64_t> parse_sizes(const std::string& text) {
  std::vector<std::int64_t> sizes;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    std::int64_t value = 0;
    const char* const end = part.data() + part.size();
    const auto [rest, error] = std::from_chars(part.data(), end, value);
    const std::string unit(rest, end);
    const int shift = unit.empty() ? 0 : unit == "K" ? 10 : unit == "M" ? 20 : unit == "G" ? 30 : -1;
    constexpr std::int64_t kLargest = std::int64_t{1} << 36;
    if (error != std::errc() || shift < 0 || value < 1 || value > (kLargest >> shift) || (value << shift) % 4 != 0)
      throw tandem::ConfigError("size '" + part +
                                "' in --sizes is none; use numbers of bytes that 4 divides, up to 64G, "
                                "such as 1024, 64K, 4M");
    sizes.push_back(value << shift);
  }
  if (sizes.empty()) throw tandem::ConfigError("--sizes is empty; use for example 1K,64K,4M,64M");
  return sizes;
}

nlohmann::ordered_json to_json(const AllReduceTime& result) {
  return {{"ranks", result.ranks},
          {"bytes", result.bytes},
          {"seconds", result.seconds},
          {"memcpy_seconds", result.memcpy_seconds}};
}

}  // namespace tandem_tool
