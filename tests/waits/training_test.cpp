// In steady state a training on GPUs waits for no device. The fake CUDA counts each wait of the hosts, and names who
// did; so are meetings of the hosts. Whole trainings of the program `train`, within this process.
#include <algorithm>
#include <map>
#include <numeric>
#include <sstream>

#include "comm/call_observer.h"
#include "comm/call_record.h"
#include "support/fake_machine.h"
#include "support/host_counts.h"
#include "support/temp_dir.h"
#include "support/train_program.h"
#include "train/training.h"

using namespace tandem;
using namespace tandem::test;

namespace {

using Counts = std::map<std::string, int>;  // by what was waited for and where

void note_meeting(const comm::CallRecord& record) { fake::note_wait("meeting", record.operation); }

train::Options options_of(const std::string& arguments) {
  std::vector<std::string> words{"train"};
  std::istringstream text(arguments);
  for (std::string word; text >> word;) words.push_back(word);
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  return train::parse_options(static_cast<int>(argv.size()), argv.data()).options.value();
}

// What hosts have waited for, and what devices were told to do, in a whole training of so many updates.
struct Seen {
  Counts waits, launches;
};

Seen run(const Machine& machine, int ranks, const std::string& arguments, int updates) {
  const TempDir dir;
  const bool graphs = arguments.find("--cuda-graphs") != std::string::npos;
  train::Options options =
      options_of((graphs ? "" : "--cuda-graphs off ") + std::string("--cpu ") + std::to_string(ranks) +
                 " --threads-per-rank 1 --quiet --max-steps " + std::to_string(updates) + " --log-json " +
                 (dir / "log") + " --project-dir " + (dir / "project") + " " + arguments);
  options.launch.cpu.reset();
  options.launch.devices.resize(static_cast<std::size_t>(ranks));
  std::iota(options.launch.devices.begin(), options.launch.devices.end(), 0);
  options.launch.backend = machine.backend;
  options.machine = examine(options.launch);
  const train::Inputs inputs = train::read_inputs(options);
  train::Unsaved unsaved(options.save_weights);
  fake::reset();
  fake::count_from_now();
  comm::call_observer = note_meeting;
  launch_on({options.machine, options.launch},
            [&](Accelerator& accelerator) { train::train_on_rank(accelerator, options, inputs, unsaved, {}); });
  comm::call_observer = nullptr;
  CHECK(read_log(dir / "log").size() == static_cast<std::size_t>(updates) + 1);
  return {fake::host_waits(), fake::launches()};
}

Counts difference(Counts more, const Counts& fewer) {
  for (const auto& [place, count] : fewer) more[place] -= count;
  std::erase_if(more, [](const auto& one) { return one.second == 0; });
  return more;
}

constexpr int kUpdates = 200;

// Of kUpdates updates after the first 30.
Seen steady_state(int ranks, const std::string& arguments) {
  const Machine machine;
  const Seen first = run(machine, ranks, arguments, 30), all = run(machine, ranks, arguments, 30 + kUpdates);
  return {difference(all.waits, first.waits), difference(all.launches, first.launches)};
}

std::string shown(const Counts& counts) {
  std::string text;
  for (const auto& [name, count] : counts) text += std::to_string(count) + " x " + name + "\n";
  return text;
}

// What a training may wait for, and why.
struct Reason {
  const char* place;  // a part of its name
  double most;        // times an update, of a rank
  const char* why;
};

const std::vector<Reason> kReasons{
    {"ModelReducer::tell_each_other", 1, "ranks' passes may reach different parameters (static_graph: they do not)"},
    {"StopWatch::is_asked", 2, "all ranks stop after the same update: a look meets twice, ten times a second"},
    {"RecordedStep::", 1, "all ranks replay a call, or none does"},
    {"Records::end_training", 1, "at the end all that is due is told"},
};
const std::vector<Reason> kReasonsOfFp16{
    {"RankTraining::agree_on_step", 1, "an update is skipped by all ranks or none"},
    {"GradScaler::step", 1, "an update whose gradients have overflowed is skipped, and its schedules"},
};

// What has waited without a reason, or more often than that allows.
std::string without_reason(const Counts& waits, const std::vector<Reason>& reasons, int ranks) {
  std::string text;
  for (const auto& [place, count] : waits) {
    const auto found = std::find_if(reasons.begin(), reasons.end(), [&place = place](const Reason& one) {
      return place.find(one.place) != std::string::npos;
    });
    if (found == reasons.end() || count > found->most * kUpdates * ranks)
      text += std::to_string(count) + " times in " + std::to_string(kUpdates) + " updates: " + place + "\n";
  }
  return text;
}

struct Flags {
  int ranks;
  std::string flags;
};

const std::string kLogs = " --log-with jsonl csv tensorboard --eval-every 0 ",
                  kMlp = "--hidden 8 --batch-size 2 --limit-train-samples 4000" + kLogs,
                  kCnn = "--model cnn --batch-size 1 --limit-train-samples 2000" + kLogs;

std::string small_gpt(const std::string& text) {
  return "--model gpt --layers 1 --width 8 --heads 1 --block-size 8 --batch-size 2 --data-file " + text + kLogs;
}

void check_waits(const std::vector<Flags>& trainings, bool fp16 = false) {
  std::vector<Reason> reasons = kReasons;
  if (fp16) reasons.insert(reasons.end(), kReasonsOfFp16.begin(), kReasonsOfFp16.end());
  for (const auto& [ranks, flags] : trainings) {
    INFO(ranks << " ranks, " << flags);
    CHECK(without_reason(steady_state(ranks, flags).waits, reasons, ranks) == "");
  }
}

}  // namespace

TEST_CASE("a training on GPUs waits for no device, whatever is logged") {
  const TempDir dir;
  check_waits({{1, small_gpt(write_text(dir, 30'000))},
               {4, kMlp + "--clip-grad-norm 1 --scheduler cosine --warmup-steps 20 --ema 0.9"}});
}

TEST_CASE("a training on GPUs whose steps are replayed waits for no device") {
  check_waits({{2, kMlp + "--cuda-graphs on --clip-grad-norm 1"}});
}

TEST_CASE("a training on GPUs in fp16 waits once an update") {
  check_waits({{2, kMlp + "--mixed-precision fp16"}}, true);
}

TEST_CASE("trainings of all kinds on GPUs wait for no device", "[.long-waits]") {
  const TempDir dir;
  const std::string gpt = small_gpt(write_text(dir, 30'000));
  check_waits({{1, kMlp},
               {1, kMlp + "--cuda-graphs on"},
               {4, kMlp},
               {4, gpt},
               {1, kCnn},
               {4, kCnn},
               {2, kMlp + "--gradient-accumulation-steps 2"},
               {2, kMlp + "--dispatch-batches --optimizer sgd --momentum 0.9"},
               {2, kMlp + "--mixed-precision bf16 --split-batches"},
               {1, kMlp + "--scheduler one_cycle --label-smoothing 0.1"}});
  check_waits({{1, kMlp + "--mixed-precision fp16"}}, true);
}

TEST_CASE("a step has a GPU do fewer things than PyTorch's of the same network does") {
  // What benchmarks/peers/count_launches.py gives with PyTorch 2.11, clipping included, and attention by the plain
  // operators as here; ours have the batch's way to the device and a log beside.
  const TempDir dir;
  const std::string gpt = "--model gpt --layers 4 --width 8 --heads 4 --block-size 8 --batch-size 2 --data-file ";
  const auto [flags, pytorch] = std::vector<std::pair<std::string, double>>{
      {"--hidden 8 8 --batch-size 2 --limit-train-samples 100", 45},
      {"--model cnn --batch-size 1 --limit-train-samples 50", 50},
      {gpt + write_text(dir, 30'000),
       268}}.at(GENERATE(0u, 1u, 2u));
  const Machine machine;
  constexpr int kMore = 8;
  const std::string all = flags + " --log-with jsonl --clip-grad-norm 1 --eval-every 0";
  const Counts more = difference(run(machine, 1, all, 3 + kMore).launches, run(machine, 1, all, 3).launches);
  double launches = 0;
  for (const auto& [name, count] : more) launches += static_cast<double>(count) / kMore;
  INFO(flags << "\n" << launches << " a step\n" << shown(more));
  CHECK(launches < pytorch);
}
