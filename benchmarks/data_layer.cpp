// data_layer: dispatch, shard mode, decoding, memory, resuming and planning, each beside its limit.
#include <sys/resource.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <thread>

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "data/loader_base.h"
#include "measure/dispatch.h"
#include "measure/statistics.h"
#include "support/image_files.h"
#include "support/temp_dir.h"
#include "tandem/tandem.h"

namespace {

using Clock = std::chrono::steady_clock;
using tandem::Accelerator;
namespace data = tandem::data;

constexpr int kRuns = 5;

double seconds_of(const std::function<void()>& work) {
  const auto start = Clock::now();
  work();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double median_of(const std::function<double()>& measure) {
  std::vector<double> values;
  for (int run = 0; run < kRuns; ++run) values.push_back(measure());
  return measure::spread_of(values).median;
}

// User and system time of this process.
double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

bool as_json = false;

void print(const char* what, double value, const char* unit, const char* goal) {
  if (as_json) {
    std::printf("%s\n", nlohmann::json{{"what", what}, {"value", value}, {"unit", unit}}.dump().c_str());
    return;
  }
  std::printf("%-58s %12.4g %-12s %s\n", what, value, unit, goal);
  std::fflush(stdout);
}

double dispatched_batches_per_second(const std::vector<std::int64_t>& shape) {
  const measure::DispatchRate rate = measure::measure_dispatch({.shape = shape});
  if (rate.copied) std::printf("a batch was COPIED\n");
  return rate.batches_per_second;
}

// Time of an epoch of a TensorDataset through a prepared loader, to that of the bare index_select calls.
double shard_to_index_select() {
  constexpr std::int64_t kRows = 60'000, kBatch = 64;
  const at::Tensor rows = at::rand({kRows, 784});
  double ratio = 0;
  tandem::launch({.cpu = 1, .threads_per_rank = 1}, [&](Accelerator& accelerator) {
    auto loader = accelerator.prepare(
        data::DataLoader(data::TensorDataset(rows), {.batch_size = kBatch, .shuffle = true, .drop_last = true}));
    std::vector<double> ratios;
    for (int run = 0; run < 2 * kRuns + 1; ++run) {
      const at::Tensor order = at::randperm(kRows, at::kLong);
      double sum = 0;
      const double bare = seconds_of([&] {
        for (std::int64_t at = 0; at + kBatch <= kRows; at += kBatch)
          sum += rows.index_select(0, order.slice(0, at, at + kBatch)).const_data_ptr<float>()[0];
      });
      auto epoch = loader.begin();  // draws the order, as above
      const double loaded = seconds_of([&] {
        for (; epoch != loader.end(); ++epoch) sum += epoch->const_data_ptr<float>()[0];
      });
      if (run > 0 && sum != 0) ratios.push_back(loaded / bare);  // the first run warms up
    }
    ratio = measure::spread_of(ratios).median;
  });
  return ratio;
}

// Proportional set size of this process in MB (10^6 bytes), from smaps_rollup.
double pss_mb() {
  std::ifstream file("/proc/self/smaps_rollup");
  for (std::string word; file >> word;)
    if (word == "Pss:") {
      double kb = 0;
      file >> kb;
      return kb * 1024 / 1e6;
    }
  return 0;
}

// Memory that loading 100 MB of data adds with `ranks` ranks, in the middle of an epoch.
double loading_mb(int ranks) {
  const at::Tensor rows = at::ones({25'000, 1000});
  const double before = pss_mb();
  double during = 0;
  tandem::launch({.cpu = ranks, .threads_per_rank = 1}, [&](Accelerator& accelerator) {
    auto loader = accelerator.prepare(
        data::DataLoader(data::TensorDataset(rows), {.batch_size = 64 / ranks, .shuffle = true, .workers = 2}));
    int steps = 0;
    for (auto& batch : loader) {
      (void)batch;
      if (++steps < 20) continue;
      accelerator.wait_for_everyone();
      if (accelerator.is_main()) during = pss_mb();
      accelerator.wait_for_everyone();
      break;
    }
  });
  return during - before;
}

struct Numbers : torch::data::datasets::BatchDataset<Numbers, at::Tensor> {
  std::int64_t length;
  explicit Numbers(std::int64_t length) : length(length) {}
  at::Tensor get_batch(c10::ArrayRef<std::size_t> indices) override {
    return at::scalar_tensor(static_cast<std::int64_t>(indices.front()), at::kLong);
  }
  std::optional<std::size_t> size() const override { return static_cast<std::size_t>(length); }
};

// Microseconds from load_state_dict to the next batch at `step` of an epoch.
double resume_us(std::int64_t step) {
  double seconds = 0;
  tandem::launch({.cpu = 1}, [&](Accelerator& accelerator) {
    auto loader = accelerator.prepare(data::DataLoader(Numbers(1'000'000'000), {.batch_size = 64}));
    seconds = seconds_of([&] {
      loader.load_state_dict({.epoch = 0, .step = step, .global_batch_size = 64});
      auto epoch = loader.begin();
      if (epoch->item<std::int64_t>() != 64 * step) std::printf("resumed at the WRONG batch\n");
    });
  });
  return seconds * 1e6;
}

// Memory that the plan of an epoch of 10^9 samples takes on 4 ranks, and the time to begin it.
void plan_a_billion(bool shuffle) {
  const double before = pss_mb();
  double during = 0, seconds = 0;
  tandem::launch({.cpu = 4, .threads_per_rank = 1}, [&](Accelerator& accelerator) {
    auto loader = accelerator.prepare(data::DataLoader(Numbers(1'000'000'000), {.batch_size = 64, .shuffle = shuffle}));
    const double mine = seconds_of([&] { data::loader_of(loader).start(); });
    data::loader_of(loader).next();
    accelerator.wait_for_everyone();
    if (accelerator.is_main()) {
      during = pss_mb();
      seconds = mine;
    }
    accelerator.wait_for_everyone();
  });
  const std::string name = std::string("plan of 10^9 samples, 4 ranks, ") + (shuffle ? "shuffled" : "in order");
  print((name + ": memory").c_str(), during - before, "MB",
        shuffle ? "one permutation, 4000 MB" : "no list of indices");
  print((name + ": time").c_str(), seconds, "s", "");
}

// Writes `count` JPEG files of noise, 640 x 480, into `directory`/class.
void write_pictures(const std::string& directory, int count) {
  const auto folder = std::filesystem::path(directory) / "class";
  std::filesystem::create_directories(folder);
  std::mt19937 random(1);
  const auto noise = tandem::test::Raster::of(480, 640, 3, [&](int, int, int) { return random(); });
  for (int i = 0; i < count; ++i) tandem::test::write_jpeg(folder / (std::to_string(i) + ".jpg"), noise);
}

struct Decoding {
  double pictures_per_second;
  double busy;  // share of `workers` cores that this process kept busy
};

// Reads all pictures with `workers` workers, as a training loop that is faster than they are.
Decoding decode(const std::string& directory, int workers) {
  Decoding result{};
  tandem::launch({.cpu = 1, .threads_per_rank = 1}, [&](Accelerator& accelerator) {
    auto loader = accelerator.prepare(
        data::DataLoader(data::ImageFolder(directory, {.shorter_side = 256, .crop = data::ImageSize{224, 224}}),
                         {.batch_size = 16, .workers = workers, .prefetch = 2}));
    std::int64_t pictures = 0;
    const double cpu = cpu_seconds();
    const double seconds = seconds_of([&] {
      for (auto& batch : loader) pictures += batch.data.size(0);
    });
    result = {static_cast<double>(pictures) / seconds, (cpu_seconds() - cpu) / seconds / workers};
  });
  return result;
}

void measure_dispatch() {
  print("dispatch to 2 ranks, 64 x 784", median_of([] { return dispatched_batches_per_second({784}); }), "batches/s",
        "at least 100000");
  print("dispatch to 2 ranks, 64 x 3 x 224 x 224", median_of([] {
          return dispatched_batches_per_second({3, 224, 224});
        }),
        "batches/s", "at least 100000");
}

void measure_shard() {
  print("shard mode of a TensorDataset to index_select", shard_to_index_select(), "x", "at most 1.2");
}

// One worker and as many as there are cores, in turn.
void measure_decoding() {
  const tandem::test::TempDir directory;
  write_pictures(directory.path(), 512);
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  std::vector<double> one, all, ratio, busy;
  decode(directory.path(), cores);  // the files come into the page cache
  for (int run = 0; run < kRuns; ++run) {
    const Decoding alone = decode(directory.path(), 1), together = decode(directory.path(), cores);
    one.push_back(alone.pictures_per_second);
    all.push_back(together.pictures_per_second);
    ratio.push_back(together.pictures_per_second / alone.pictures_per_second);
    busy.push_back(100 * together.busy);
  }
  const std::string as_many = std::to_string(cores);
  print("decoding JPEG, 1 worker", measure::spread_of(one).median, "pictures/s", "");
  print(("decoding JPEG, workers: " + as_many).c_str(), measure::spread_of(all).median, "pictures/s", "");
  print("decoding JPEG, all workers to one", measure::spread_of(ratio).median, "x", ("near " + as_many).c_str());
  print("decoding JPEG, cores busy", measure::spread_of(busy).median, "%", "above 90");
}

void measure_memory() {
  loading_mb(1);  // what the first launch allocates once a process
  print("memory of loading, 1 rank", loading_mb(1), "MB", "");
  print("memory of loading, 8 ranks", loading_mb(8), "MB", "as 1 rank");
}

void measure_resuming() {
  print("resume at step 1", median_of([] { return resume_us(1); }), "us", "");
  print("resume at step 10^6", median_of([] { return resume_us(1'000'000); }), "us", "as step 1");
}

}  // namespace

int main(int argc, char** argv) {
  const std::map<std::string, void (*)()> parts{{"dispatch", measure_dispatch},
                                                {"shard", measure_shard},
                                                {"decoding", measure_decoding},
                                                {"memory", measure_memory},
                                                {"resuming", measure_resuming},
                                                {"plan", [] { plan_a_billion(false); }},
                                                {"shuffled-plan", [] { plan_a_billion(true); }}};
  std::vector<std::string> wanted{"dispatch", "shard", "decoding", "memory", "resuming", "plan"};
  CLI::App app("The data layer, each figure beside its limit", "data_layer");
  app.add_option("parts", wanted, "what to measure; shuffled-plan takes 9 GB and a minute")
      ->check(CLI::IsMember(parts))
      ->capture_default_str();
  app.add_flag("--json", as_json, "a JSON object a line");
  CLI11_PARSE(app, argc, argv);
  at::set_num_threads(1);
  for (const std::string& part : wanted) parts.at(part)();
}
