#include "runtime/determinism.h"

#include <mutex>

#include <ATen/Context.h>

#include "tandem/core/error.h"

namespace tandem {
namespace {

struct Settings {
  bool algorithms, warn_only, fill, cudnn, benchmark, mkldnn;

  static Settings now() {
    const at::Context& context = at::globalContext();
    return {context.deterministicAlgorithms(),
            context.deterministicAlgorithmsWarnOnly(),
            context.deterministicFillUninitializedMemory(),
            context.deterministicCuDNN(),
            context.benchmarkCuDNN(),
            context.deterministicMkldnn()};
  }

  void set() const {
    at::Context& context = at::globalContext();
    context.setDeterministicAlgorithms(algorithms, warn_only);
    context.setDeterministicFillUninitializedMemory(fill);
    context.setDeterministicCuDNN(cudnn);
    context.setBenchmarkCuDNN(benchmark);
    context.setDeterministicMkldnn(mkldnn);
  }
};

constexpr Settings kExact{.algorithms = true,
                          .warn_only = false,
                          .fill = false,  // costs time, and what reads fresh memory is wrong in any case
                          .cudnn = true,
                          .benchmark = false,
                          .mkldnn = true};

struct Launches {
  std::mutex mutex;
  int exact = 0, others = 0;
  Settings before{};

  static Launches& of_process() {
    static Launches launches;
    return launches;
  }
};

}  // namespace

Determinism::Determinism(const LaunchConfig& config) : exact_(config.exact.has_value()) {
  Launches& launches = Launches::of_process();
  const std::lock_guard lock(launches.mutex);
  if ((exact_ ? launches.others : launches.exact) > 0)
    throw ConfigError(
        std::string("a launch ") +
        (exact_ ? "in exact mode while one runs that is not" : "that is not exact while one in exact mode runs") +
        ": LibTorch's deterministic algorithms are the whole process's; let that one end first");
  if (exact_ && launches.exact == 0) {
    launches.before = Settings::now();
    kExact.set();
  }
  (exact_ ? launches.exact : launches.others) += 1;
}

Determinism::~Determinism() {
  Launches& launches = Launches::of_process();
  const std::lock_guard lock(launches.mutex);
  (exact_ ? launches.exact : launches.others) -= 1;
  if (exact_ && launches.exact == 0) launches.before.set();
}

}  // namespace tandem
