// tandem bench: measures Tandem on this machine.
#include <cstdio>
#include <memory>
#include <string>

#include "bench_all_reduce.h"
#include "command.h"

namespace tandem_tool {
namespace {

struct AllReduceOptions {
  AllReduceRequest request;
  std::string sizes = "1K,64K,4M,64M";
  bool json = false;
};

int bench_all_reduce(AllReduceOptions options) {
  options.request.bytes = parse_sizes(options.sizes);
  options.request.cancel = stop_when_interrupted();
  if (!options.json) std::printf("%12s %12s %10s %12s %8s\n", "bytes", "time us", "GB/s", "memcpy us", "ratio");
  measure_all_reduces(options.request, [&](const AllReduceTime& result) {
    const double bytes = static_cast<double>(result.bytes);
    if (options.json)
      std::printf("%s\n", to_json(result).dump().c_str());
    else
      std::printf("%12lld %12.2f %10.2f %12.2f %8.2f\n", static_cast<long long>(result.bytes), result.seconds * 1e6,
                  bytes / result.seconds * 1e-9, result.memcpy_seconds * 1e6, result.seconds / result.memcpy_seconds);
    std::fflush(stdout);
  });
  return apps::kDone;
}

void add_all_reduce(CLI::App& bench, Commands& commands) {
  const auto options = std::make_shared<AllReduceOptions>();
  auto* reduce = bench.add_subcommand("allreduce", "All-reduces between CPU ranks, beside a memcpy of the same size.");
  reduce->add_option("--ranks", options->request.ranks, "ranks")->check(CLI::Range(1, 256))->capture_default_str();
  reduce->add_option("--sizes", options->sizes, "bytes of the float32 tensor")->capture_default_str();
  reduce->add_flag("--json", options->json, "a JSON object a size");
  reduce->footer("Examples:\n  tandem bench allreduce\n  tandem bench allreduce --ranks 8 --sizes 1K,1M --json");
  commands.push_back({reduce, [options] { return bench_all_reduce(*options); }});
}

}  // namespace

void add_bench(CLI::App& tandem, Commands& commands) {
  auto* bench = tandem.add_subcommand("bench", "Measures Tandem on this machine.");
  bench->require_subcommand(1);
  bench->footer("Examples:\n  tandem bench allreduce --ranks 4");
  add_all_reduce(*bench, commands);
}

}  // namespace tandem_tool
