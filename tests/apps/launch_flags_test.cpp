// The flags of a launch as a program of one's own has them, and train.
#include "tandem/launch_flags.h"

#include <cstdlib>
#include <functional>
#include <set>

#include "support/catch.h"
#include "train/options.h"

using namespace tandem;

namespace {

// What `words` make of `config`.
LaunchConfig parsed(const std::string& words, LaunchConfig config = {}) {
  CLI::App app;
  add_launch_flags(app, config);
  app.parse(words);
  return config;
}

struct Case {
  std::string words;
  std::function<bool(const LaunchConfig&)> holds;
};

const std::vector<Case> kCases{
    {"--gpus 3", [](const LaunchConfig& c) { return c.gpus == 3; }},
    {"--devices 0,2,2",
     [](const LaunchConfig& c) {
       return c.devices == std::vector{0, 2, 2};
     }},
    {"--cpu 4", [](const LaunchConfig& c) { return c.cpu == 4; }},
    {"--nodes 3", [](const LaunchConfig& c) { return c.nodes && c.nodes->nodes == 3; }},
    {"--node 2 --nodes 3", [](const LaunchConfig& c) { return c.nodes && c.nodes->node == 2; }},
    {"--head a:b:500 --nodes 3",
     [](const LaunchConfig& c) { return c.nodes && c.nodes->head == "a:b" && c.nodes->port == 500; }},
    {"--exact", [](const LaunchConfig& c) { return c.exact.has_value(); }},
    {"--exact=false", [](const LaunchConfig& c) { return !c.exact; }},
    {"--logical-ranks 4", [](const LaunchConfig& c) { return c.exact && c.exact->logical_ranks == 4; }},
    {"--logical-ranks 4 --exact", [](const LaunchConfig& c) { return c.exact && c.exact->logical_ranks == 4; }},
    {"--exact --logical-ranks 4", [](const LaunchConfig& c) { return c.exact && c.exact->logical_ranks == 4; }},
    {"--threads-per-rank 2", [](const LaunchConfig& c) { return c.threads_per_rank == 2; }},
    {"--transport automatic", [](const LaunchConfig& c) { return c.transport == Transport::automatic; }},
    {"--transport nccl", [](const LaunchConfig& c) { return c.transport == Transport::nccl; }},
    {"--transport peer-memory", [](const LaunchConfig& c) { return c.transport == Transport::peer_memory; }},
    {"--tf32", [](const LaunchConfig& c) { return c.tf32 == true; }},
    {"--no-tf32", [](const LaunchConfig& c) { return c.tf32 == false; }},
    {"--expandable-segments", [](const LaunchConfig& c) { return c.expandable_segments; }},
    {"--seed 18446744073709551615", [](const LaunchConfig& c) { return c.seed == ~std::uint64_t{0}; }},
    {"--mixed-precision no", [](const LaunchConfig& c) { return c.mixed_precision == Precision::no; }},
    {"--mixed-precision bf16", [](const LaunchConfig& c) { return c.mixed_precision == Precision::bf16; }},
    {"--mixed-precision fp16", [](const LaunchConfig& c) { return c.mixed_precision == Precision::fp16; }},
    {"--gradient-accumulation-steps 5", [](const LaunchConfig& c) { return c.gradient_accumulation_steps == 5; }},
    {"--no-even-batches", [](const LaunchConfig& c) { return !c.data_loader.even_batches; }},
    {"--no-even-batches --no-even-batches=false", [](const LaunchConfig& c) { return c.data_loader.even_batches; }},
    {"--no-even-batches=false", [](const LaunchConfig& c) { return c.data_loader.even_batches; }},
    {"--split-batches", [](const LaunchConfig& c) { return c.data_loader.split_batches; }},
    {"--dispatch-batches", [](const LaunchConfig& c) { return c.data_loader.dispatch_batches == true; }},
    {"--dispatch-batches=false", [](const LaunchConfig& c) { return c.data_loader.dispatch_batches == false; }},
    {"--nvtx-steps 3:9", [](const LaunchConfig& c) { return c.nvtx_capture.first == 3 && c.nvtx_capture.last == 9; }}};

// A config that is the opposite of what each flag asks for.
LaunchConfig other() {
  LaunchConfig config{.cpu = 1, .seed = 1, .transport = Transport::nccl, .threads_per_rank = 9};
  config.exact = ExactOptions{.logical_ranks = 16};
  config.data_loader = {.split_batches = false, .dispatch_batches = true, .even_batches = false};
  config.mixed_precision = Precision::bf16;
  config.nvtx_capture = {1, 1};
  return config;
}

std::string flag_in(const std::string& words) { return words.substr(0, words.find_first_of(" =")); }

}  // namespace

TEST_CASE("each flag of a launch sets its field, whatever that was before, and train has the same flag") {
  std::set<std::string> tried;
  for (const Case& c : kCases) {
    CAPTURE(c.words);
    CHECK(c.holds(parsed(c.words)));
    CHECK(c.holds(parsed(c.words, other())));
    tried.insert(flag_in(c.words));
  }
  LaunchConfig config;
  CLI::App app;
  add_launch_flags(app, config);
  const auto train = train::describe_command_line();
  for (const CLI::Option* option : app.get_options()) {
    const std::string flag = "--" + option->get_single_name();
    CAPTURE(flag);
    if (flag == "--help") continue;
    CHECK(tried.contains(flag));
    const CLI::Option* const trains = train->get_option_no_throw(flag);
    REQUIRE(trains != nullptr);
    CHECK(trains->get_type_name() == option->get_type_name());
    CHECK(trains->get_default_str() == option->get_default_str());
    CHECK((flag == "--split-batches" || trains->get_description() == option->get_description()));
  }
}

TEST_CASE("what is not given stays as the program has it, and is what the help shows") {
  LaunchConfig config = other();
  CLI::App app;
  add_launch_flags(app, config);
  const std::string help = app.help();
  CHECK_THAT(help, ContainsSubstring("=nccl") && ContainsSubstring("=bf16") && ContainsSubstring("UINT=1"));
  app.parse("--threads-per-rank 2");
  CHECK(config.cpu == 1);
  CHECK(config.seed == 1);
  CHECK(config.transport == Transport::nccl);
  CHECK(config.mixed_precision == Precision::bf16);
  CHECK(!config.data_loader.even_batches);
  CHECK(config.data_loader.dispatch_batches == true);
  CHECK(config.nvtx_capture.last == 1);
  const LaunchConfig untouched = parsed("");
  CHECK(!untouched.tf32);                          // as LibTorch is set
  CHECK(!untouched.data_loader.dispatch_batches);  // by the dataset
}

TEST_CASE("a flag for ranks replaces the program's own, of whatever kind") {
  for (const LaunchConfig& own : {LaunchConfig{.gpus = 1}, LaunchConfig{.devices = {0}}, LaunchConfig{.cpu = 1}})
    for (const char* words : {"--gpus 2", "--devices 2", "--cpu 2"}) {
      const LaunchConfig config = parsed(words, own);
      CHECK((config.gpus ? 1 : 0) + (config.devices.empty() ? 0 : 1) + (config.cpu ? 1 : 0) == 1);
      CHECK((config.gpus == 2 || config.devices == std::vector{2} || config.cpu == 2));
    }
}

TEST_CASE("a value that no launch takes is an error of the parser that names the flag") {
  for (const std::string words : {"--gpus 0",
                                  "--gpus two",
                                  "--devices 0,x",
                                  "--devices -1",
                                  "--cpu 0",
                                  "--cpu 1025",
                                  "--cpu 1 --gpus 1",
                                  "--gpus 1 --devices 1",
                                  "--devices 1 --cpu 1",
                                  "--threads-per-rank 0",
                                  "--transport x",
                                  "--tf32=x",
                                  "--expandable-segments=x",
                                  "--seed -1",
                                  "--seed 18446744073709551616",
                                  "--mixed-precision fp8",
                                  "--gradient-accumulation-steps 0",
                                  "--no-even-batches=x",
                                  "--split-batches=x",
                                  "--dispatch-batches=x",
                                  "--nvtx-steps 5",
                                  "--nvtx-steps 0:5",
                                  "--nvtx-steps 9:8",
                                  "--nvtx-steps 1:99999999999999999999"}) {
    CAPTURE(words);
    try {
      parsed(words);
      FAIL_CHECK("was taken");
    } catch (const CLI::ParseError& error) {
      CHECK_THAT(error.what(), ContainsSubstring(flag_in(words)));
    }
  }
}

TEST_CASE("the steps to capture come from the environment too, and a wrong value there is no silence") {
  ::setenv("TANDEM_NVTX_STEPS", "4:6", 1);
  CHECK(parsed("").nvtx_capture.first == 4);
  CHECK(parsed("--nvtx-steps 1:2").nvtx_capture.first == 1);
  ::setenv("TANDEM_NVTX_STEPS", "x", 1);
  CHECK_THROWS_WITH(parsed(""), ContainsSubstring("--nvtx-steps x"));
  ::unsetenv("TANDEM_NVTX_STEPS");
}
