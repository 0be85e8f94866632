#include "check_exact.h"

#include <cstdio>

#include "common/interrupt.h"
#include "common/program.h"
#include "tandem/runtime/check_exact.h"
#include "training.h"

namespace train {

int check_exact(const Options& options, const tandem::LaunchConfig& launch, const Inputs& inputs) {
  Unsaved nothing("");
  apps::stop_at_signals([] { return std::string(); }, !options.quiet);
  const tandem::ExactCheck check = tandem::check_exact(
      launch, [&](tandem::Accelerator& accelerator) { train_on_rank(accelerator, options, inputs, nothing); },
      *options.check_exact);
  if (apps::interrupted()) return apps::kInterrupted;
  if (check.difference) throw tandem::Error(check.text());
  if (!options.quiet) std::printf("%s\n", check.text().c_str());
  return apps::kDone;
}

}  // namespace train
