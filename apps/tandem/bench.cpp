// tandem bench: measures Tandem on this machine.
#include <cstdio>
#include <memory>
#include <string>

#include <ATen/Parallel.h>
#include <nlohmann/json.hpp>

#include "bench_all_reduce.h"
#include "bench_checkpoint.h"
#include "command.h"
#include "measure/dispatch.h"
#include "measure/optimizer_step.h"
#include "measure/statistics.h"
#include "measure/training_step.h"

namespace tandem_tool {
namespace {

using Json = nlohmann::ordered_json;

// ---- allreduce

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

// ---- dispatch

struct DispatchOptions {
  measure::DispatchRequest request;
  bool json = false;
};

int bench_dispatch(DispatchOptions options) {
  auto& request = options.request;
  request.cancel = stop_when_interrupted();
  const auto rate = measure::measure_dispatch(request);
  if (options.json)
    std::printf("%s\n", Json{{"ranks", request.ranks},
                             {"batch_size", request.batch_size},
                             {"shape", request.shape},
                             {"batches_per_second", rate.batches_per_second},
                             {"copied", rate.copied}}
                            .dump()
                            .c_str());
  else
    std::printf("%.0f batches/s to %d ranks together, %s\n", rate.batches_per_second, request.ranks,
                rate.copied ? "COPIED" : "without a copy");
  return rate.copied ? apps::kFailed : apps::kDone;
}

void add_dispatch(CLI::App& bench, Commands& commands) {
  const auto options = std::make_shared<DispatchOptions>();
  auto& request = options->request;
  auto* dispatch = bench.add_subcommand("dispatch", "Rank 0 hands batches that are ready to CPU ranks.");
  dispatch->add_option("--ranks", request.ranks, "ranks")->check(CLI::Range(1, 256))->capture_default_str();
  dispatch->add_option("--batch-size", request.batch_size, "samples of a rank's batch")
      ->check(CLI::Range(1, 100'000))
      ->capture_default_str();
  dispatch->add_option("--shape", request.shape, "of a sample, such as 3,224,224 (default: 784)")
      ->delimiter(',')
      ->check(CLI::Range(1, 100'000));
  dispatch->add_option("--batches", request.batches, "of a rank")
      ->check(CLI::Range(1, 100'000'000))
      ->capture_default_str();
  dispatch->add_flag("--json", options->json, "print JSON");
  dispatch->footer("Examples:\n  tandem bench dispatch\n  tandem bench dispatch --ranks 4 --shape 3,224,224 --json");
  commands.push_back({dispatch, [options] { return bench_dispatch(*options); }});
}

// ---- optimizer

struct OptimizerOptions {
  std::int64_t millions = 10;
  int runs = 15;
  bool json = false;
};

int bench_optimizer(const OptimizerOptions& options) {
  at::set_num_threads(1);
  if (!options.json) std::printf("%-32s %10s  %-24s %10s %8s\n", "", "fused ms", "beside", "ms", "ratio");
  const auto show = [&](const std::string& what, const char* peer, const measure::StepTimes& times) {
    if (options.json)
      std::printf("%s\n",
                  Json{{"what", what}, {"fused_seconds", times.fused}, {"beside", peer}, {"beside_seconds", times.peer}}
                      .dump()
                      .c_str());
    else
      std::printf("%-32s %10.3f  %-24s %10.3f %8.2f\n", what.c_str(), times.fused * 1e3, peer, times.peer * 1e3,
                  times.fused / times.peer);
    std::fflush(stdout);
  };
  for (const auto& [optimizer, name] : {std::pair{measure::Optimizer::adamw, "AdamW"},
                                        {measure::Optimizer::adam, "Adam"},
                                        {measure::Optimizer::sgd, "SGD with momentum"}})
    show(std::string(name) + ", 100 of 64 x 64", "torch::optim's own step",
         measure::step_of_small_tensors(optimizer, options.runs));
  show("AdamW, " + std::to_string(options.millions) + " million", "4 reads and 3 writes",
       measure::step_of_large_tensor(options.millions * 1'000'000, options.runs));
  return apps::kDone;
}

void add_optimizer(CLI::App& bench, Commands& commands) {
  const auto options = std::make_shared<OptimizerOptions>();
  auto* optimizer = bench.add_subcommand(
      "optimizer", "Fused optimizer steps on one core, beside LibTorch's own and beside their memory traffic.");
  optimizer->add_option("--millions", options->millions, "elements of the large parameter (16 bytes each)")
      ->check(CLI::Range(1, 10'000))
      ->capture_default_str();
  optimizer->add_option("--runs", options->runs, "steps of each; 20 times as many of the small ones")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  optimizer->add_flag("--json", options->json, "a JSON object a figure");
  optimizer->footer("Examples:\n  tandem bench optimizer\n  tandem bench optimizer --millions 100 --json");
  commands.push_back({optimizer, [options] { return bench_optimizer(*options); }});
}

// ---- checkpoint

struct CheckpointOptions {
  CheckpointRequest request;
  double millions = 25;
  bool json = false;
};

int bench_checkpoint(CheckpointOptions options) {
  auto& request = options.request;
  request.parameters = static_cast<std::int64_t>(options.millions * 1e6);
  request.cancel = stop_when_interrupted();
  const CheckpointTimes times = time_checkpoints(request);
  const double megabytes = static_cast<double>(times.bytes) / 1e6;
  if (options.json) {
    std::printf("%s\n", Json{{"ranks", request.ranks},
                             {"bytes", times.bytes},
                             {"save_seconds", times.save},
                             {"stop_seconds", times.stop},
                             {"background_seconds", times.background},
                             {"load_seconds", times.load},
                             {"write_seconds", times.write}}
                            .dump()
                            .c_str());
    return apps::kDone;
  }
  std::printf("%.1f MB, %d ranks\n%-28s %10s %10s %8s\n", megabytes, request.ranks, "", "seconds", "MB/s", "ratio");
  for (const auto& [what, seconds] : {std::pair{"save_state", times.save},
                                      {"the same in the background", times.background},
                                      {"of it ranks are stopped", times.stop},
                                      {"load_state", times.load},
                                      {"bare write and fsync", times.write}})
    std::printf("%-28s %10.3f %10.0f %8.2f\n", what, seconds, megabytes / seconds, seconds / times.write);
  return apps::kDone;
}

void add_checkpoint_bench(CLI::App& bench, Commands& commands) {
  const auto options = std::make_shared<CheckpointOptions>();
  auto& request = options->request;
  auto* checkpoint = bench.add_subcommand(
      "checkpoint",
      "Saves and loads a model with AdamW's state, beside a bare file of as many bytes in the same directory.");
  checkpoint->add_option("directory", request.directory, "where; what is written there is removed again")
      ->type_name("DIR")
      ->check(CLI::ExistingDirectory)
      ->capture_default_str();
  checkpoint->add_option("--millions", options->millions, "parameters, in float32")
      ->check(CLI::Range(0.1, 100'000.0))
      ->capture_default_str();
  checkpoint->add_option("--ranks", request.ranks, "ranks")->check(CLI::Range(1, 256))->capture_default_str();
  checkpoint->add_option("--runs", request.runs, "of each; medians are shown")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  checkpoint->add_flag("--json", options->json, "print JSON");
  checkpoint->footer("Examples:\n  tandem bench checkpoint\n  tandem bench checkpoint /data --millions 250 --ranks 4");
  commands.push_back({checkpoint, [options] { return bench_checkpoint(*options); }});
}

// ---- train

struct TrainOptions {
  measure::StepSetup setup{.ranks = 2};
  std::string model = "mlp", data_dir = TANDEM_DEFAULT_DATA_DIR;
  int pairs = 5;
  bool json = false;
};

int bench_train(TrainOptions options) {
  constexpr double kTolerance = 1e-5;
  auto& setup = options.setup;
  setup.model = options.model == "cnn" ? train::ModelKind::cnn : train::ModelKind::mlp;
  setup.cancel = stop_when_interrupted();
  at::set_num_threads(1);
  const auto figures = measure::time_steps(setup, options.data_dir, options.pairs);
  const double bare = measure::spread_of(figures.bare).median, ours = measure::spread_of(figures.tandem).median;
  const double ratio = measure::spread_of(figures.ratios).median;
  if (options.json)
    std::printf("%s\n", Json{{"model", options.model},
                             {"ranks", setup.ranks},
                             {"tandem_seconds", ours},
                             {"bare_seconds", bare},
                             {"ratio", ratio},
                             {"weights_difference", figures.difference}}
                            .dump()
                            .c_str());
  else
    std::printf("%s on %d ranks: %.3f ms a step, a bare LibTorch loop %.3f ms, ratio %.3f; weights differ by %g\n",
                options.model.c_str(), setup.ranks, ours * 1e3, bare * 1e3, ratio, figures.difference);
  return figures.difference <= kTolerance ? apps::kDone : apps::kFailed;
}

void add_train(CLI::App& bench, Commands& commands) {
  const auto options = std::make_shared<TrainOptions>();
  auto* train = bench.add_subcommand(
      "train", "Training steps on CPU ranks, in turn with those of a bare LibTorch loop on as many threads.");
  train->add_option("--model", options->model, "which network")
      ->check(CLI::IsMember({"mlp", "cnn"}))
      ->capture_default_str();
  train->add_option("--ranks", options->setup.ranks, "ranks")->check(CLI::Range(1, 64))->capture_default_str();
  train->add_option("--steps", options->setup.steps, "of a run")->check(CLI::Range(1, 400))->capture_default_str();
  train->add_option("--pairs", options->pairs, "runs of each")->check(CLI::Range(1, 1000))->capture_default_str();
  train->add_option("--data-dir", options->data_dir, "folder with the four files of MNIST")
      ->type_name("DIR")
      ->check(CLI::ExistingDirectory)
      ->capture_default_str();
  train->add_flag("--json", options->json, "print JSON");
  train->footer("Examples:\n  tandem bench train\n  tandem bench train --model cnn --steps 15 --json");
  commands.push_back({train, [options] { return bench_train(*options); }});
}

}  // namespace

void add_bench(CLI::App& tandem, Commands& commands) {
  auto* bench = tandem.add_subcommand("bench", "Measures Tandem on this machine.");
  bench->require_subcommand(1);
  bench->footer("Examples:\n  tandem bench allreduce --ranks 4\n  tandem bench train --json");
  add_all_reduce(*bench, commands);
  add_checkpoint_bench(*bench, commands);
  add_dispatch(*bench, commands);
  add_optimizer(*bench, commands);
  add_train(*bench, commands);
}

}  // namespace tandem_tool
