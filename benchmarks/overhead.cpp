// overhead: what a training step costs with Tandem, as a ratio to a bare LibTorch loop on hand-written threads with the
// same data, arithmetic and number of intra-op threads (1 a rank). Short runs of both alternate; the figure is the
// median of the pairs' ratios. Both must end with the same weights. Goal: at most 1.02.
#include <cstdio>
#include <string>

#include <ATen/Parallel.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "measure/statistics.h"
#include "measure/training_step.h"

namespace {

constexpr double kTolerance = 1e-5;  // of the weights, which both have to end with

}  // namespace

int main(int argc, char** argv) {
  std::string data_dir = TANDEM_DEFAULT_DATA_DIR;
  int pairs = 15;
  std::string only;
  bool json = false;
  CLI::App app("A training step with Tandem as a ratio to a bare LibTorch loop", "overhead");
  app.add_option("--data-dir", data_dir, "folder with the four files of MNIST");
  app.add_option("--pairs", pairs, "runs of each")->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_option("--model", only, "this one only")->check(CLI::IsMember({"mlp", "cnn"}));
  app.add_flag("--json", json, "print one JSON object a setup");
  CLI11_PARSE(app, argc, argv);

  at::set_num_threads(1);
  if (!json)
    std::puts("model  ranks  bare ms/step  tandem ms/step  ratio: median  min   max   weights differ by at most");
  bool same = true;
  using measure::StepSetup;
  for (const StepSetup& setup : {StepSetup{train::ModelKind::mlp, 1, 100}, StepSetup{train::ModelKind::mlp, 2, 100},
                                 StepSetup{train::ModelKind::cnn, 1, 15}, StepSetup{train::ModelKind::cnn, 2, 15}}) {
    const char* name = setup.model == train::ModelKind::mlp ? "mlp" : "cnn";
    if (!only.empty() && only != name) continue;
    const auto figures = measure::time_steps(setup, data_dir, pairs);
    const auto ratios = measure::spread_of(figures.ratios);
    const double bare_ms = measure::spread_of(figures.bare).median * 1e3;
    const double tandem_ms = measure::spread_of(figures.tandem).median * 1e3;
    same = same && figures.difference <= kTolerance;
    if (json)
      std::printf("%s\n", nlohmann::ordered_json{{"benchmark", "overhead"},
                                                 {"model", name},
                                                 {"ranks", setup.ranks},
                                                 {"bare_ms", bare_ms},
                                                 {"tandem_ms", tandem_ms},
                                                 {"ratio", ratios.median},
                                                 {"weights_difference", figures.difference}}
                              .dump()
                              .c_str());
    else
      std::printf("%-5s  %5d  %12.3f  %14.3f  %13.4f  %.3f %.3f  %g\n", name, setup.ranks, bare_ms, tandem_ms,
                  ratios.median, ratios.min, ratios.max, figures.difference);
    std::fflush(stdout);
  }
  if (!same) std::fprintf(stderr, "overhead: the weights differ by more than %g\n", kTolerance);
  return same ? 0 : 1;
}
