// In steady state a training on GPUs waits for no device. The fake CUDA counts each wait of the hosts, and names who did;
// so are meetings of the hosts. Whole trainings of the program `train`, within this process.
#include <algorithm>
#include <map>
#include <numeric>
#include <sstream>

#include "comm/call_observer.h"
#include "comm/call_record.h"
#include "support/fake_machine.h"
#include "support/host_waits.h"
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
  train::Options options = options_of("--cpu " + std::to_string(ranks) + " --threads-per-rank 1 --quiet --max-steps " +
                                      std::to_string(updates) + " --log-json " + (dir / "log") + " --project-dir " +
                                      (dir / "project") + " " + arguments);
  options.launch.cpu.reset();
  options.launch.devices.resize(static_cast<std::size_t>(ranks));
  std::iota(options.launch.devices.begin(), options.launch.devices.end(), 0);
  options.launch.backend = machine.backend;
  options.machine = examine(options.launch);
  const train::Inputs inputs = train::read_inputs(options);
  train::Unsaved unsaved(options.save_weights);
  fake::reset();
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

Counts of_kind(const Counts& counts, bool meetings) {
  Counts some;
  for (const auto& [place, count] : counts)
    if (place.starts_with("meeting") == meetings) some.insert({place, count});
  return some;
}

std::string shown(const Counts& counts) {
  std::string text;
  for (const auto& [place, count] : counts) text += std::to_string(count) + " x " + place + "\n";
  return text;
}

}  // namespace

TEST_CASE("a training on GPUs waits for no device") {
  const TempDir dir;
  const std::string logs = " --log-with jsonl csv tensorboard --eval-every 0 ",
                    mlp = "--hidden 8 --batch-size 2 --limit-train-samples 4000" + logs,
                    cnn = "--model cnn --batch-size 1 --limit-train-samples 2000" + logs,
                    gpt = "--model gpt --layers 1 --width 8 --heads 1 --block-size 8 --batch-size 2 --data-file " +
                          write_text(dir, 30'000) + logs;
  for (const auto& [ranks, flags] : std::vector<std::pair<int, std::string>>{
           {1, mlp},
           {4, mlp},
           {1, gpt},
           {4, gpt},
           {1, cnn},
           {4, mlp + "--clip-grad-norm 1 --scheduler cosine --warmup-steps 20 --ema 0.9"},
           {2, mlp + "--gradient-accumulation-steps 2"},
           {2, mlp + "--dispatch-batches --optimizer sgd --momentum 0.9"},
           {1, mlp + "--mixed-precision fp16"},
           {2, mlp + "--mixed-precision fp16"},
           {2, mlp + "--mixed-precision bf16 --split-batches"}}) {
    const Seen seen = steady_state(ranks, flags);
    INFO(ranks << " ranks, " << flags << "\n" << shown(seen.waits) << shown(seen.launches));
    CHECK(of_kind(seen.waits, false) == Counts{});
    CHECK(of_kind(seen.waits, true) == Counts{});
  }
}
