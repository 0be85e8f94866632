// Checkpoints with automatic names, of which the newest that is whole is loaded.
#include <unistd.h>

#include <filesystem>
#include <memory>

#include "checkpoint/state_training.h"
#include "support/error_of.h"
#include "support/failing_calls.h"
#include "support/temp_dir.h"

using namespace tandem;
using namespace tandem::test;
using namespace tandem::test::states;
namespace fs = std::filesystem;

TEST_CASE("checkpoints in a directory that is named with a slash are kept, and counted") {
  const TempDir dir;
  LaunchConfig config;
  config.checkpoints = {.directory = dir.path() + "/", .total_limit = 1};
  run_ranks(1, config, [](Accelerator& accelerator) {
    Small small(accelerator);
    for (int i = 0; i < 3; ++i) accelerator.save_state();
    accelerator.load_state();
  });
  CHECK(io::list_checkpoints(dir.path()) == std::vector<std::string>{dir / "checkpoint_2"});
}

TEST_CASE("checkpoints have automatic names, a limit, and a link to the latest") {
  const TempDir dir;
  LaunchConfig config;
  config.checkpoints = {.directory = dir / "out/checkpoints", .total_limit = 2};
  std::vector<std::string> saved;
  run_ranks(2, config, [&](Accelerator& accelerator) {
    Small small(accelerator);
    for (int i = 0; i < 4; ++i) {
      small.train(accelerator);
      const auto path = accelerator.save_state({}, {.background = i % 2 == 1});
      if (accelerator.is_main()) saved.push_back(path);
    }
  });
  CHECK(saved.back() == dir / "out/checkpoints/checkpoint_3");
  CHECK(io::list_checkpoints(config.checkpoints.directory) == std::vector<std::string>{saved[2], saved[3]});
  CHECK(fs::read_symlink(config.checkpoints.directory + "/latest") == "checkpoint_3");
  run_ranks(2, config, [&](Accelerator& accelerator) {
    Small small(accelerator);
    const auto path = accelerator.load_state();
    if (path != saved[3] || small.optimizer.updates() != 4) throw std::logic_error("resumed from " + path);
    accelerator.load_state(config.checkpoints.directory + "/latest");
    if (accelerator.save_state() != dir / "out/checkpoints/checkpoint_4") throw std::logic_error("the next name");
  });
}

TEST_CASE("a damaged newest checkpoint is told of, and the one before is loaded") {
  const TempDir dir;
  LaunchConfig config;
  config.checkpoints.directory = dir.path();
  std::vector<std::string> warnings;
  config.on_warning = [&](const std::string& text) { warnings.push_back(text); };
  const auto save = [&] {
    run_ranks(1, config, [](Accelerator& accelerator) {
      Small small(accelerator);
      small.train(accelerator);
      accelerator.save_state();
    });
  };
  save();
  save();
  fs::resize_file(dir / "checkpoint_1/optimizer.bin", 100);
  run_ranks(2, config, [&](Accelerator& accelerator) {
    Small small(accelerator);
    if (accelerator.load_state() != dir / "checkpoint_0") throw std::logic_error("the damaged one was loaded");
  });
  REQUIRE(warnings.size() == 1);
  CHECK_THAT(warnings[0], ContainsSubstring("checkpoint_1/optimizer.bin: is cut off"));
  fs::resize_file(dir / "checkpoint_0/model.safetensors", 100);
  const auto error = run_ranks_expecting_error(2, config, [](Accelerator& accelerator) {
    Small small(accelerator);
    accelerator.load_state();
  });
  CHECK_THAT(error.what(), ContainsSubstring("checkpoint_1/optimizer.bin: is cut off"));
}

TEST_CASE("one launch at a time saves into a directory, another is told on all ranks, and may load") {
  const TempDir dir;
  LaunchConfig config;
  config.checkpoints.directory = dir.path();
  const auto save = [](Accelerator& accelerator) {
    Small small(accelerator);
    small.train(accelerator);
    accelerator.save_state();
  };
  run_ranks(1, config, save);
  const auto series = std::make_shared<io::CheckpointSeries>(dir.path());
  for (const bool background : {false, true}) {
    const auto error = run_ranks_expecting_error(2, config, [&](Accelerator& accelerator) {
      Small small(accelerator);
      accelerator.load_state();
      accelerator.save_state({}, {.background = background});
    });
    CHECK_THAT(error.what(), ContainsSubstring("process " + std::to_string(getpid()) + " on "));
  }
  CHECK(io::list_checkpoints(dir.path()).size() == 1);
  config.checkpoints.series = series;  // the one who has it may give it
  run_ranks(2, config, save);
  run_ranks(1, config, save);
  CHECK(io::list_checkpoints(dir.path()).size() == 3);
}

TEST_CASE("the link to the latest leads to the new checkpoint before the old one goes") {
  const TempDir dir;
  LaunchConfig config;
  config.checkpoints = {.directory = dir.path(), .total_limit = 1};
  run_ranks(1, config, [](Accelerator& accelerator) {
    Small small(accelerator);
    accelerator.save_state();
    const FailingCall failing("rename", 3, EIO);  // after the checkpoint's own and the link's
    error_of<CheckpointError>([&] { accelerator.save_state(); });
    if (!failing.came()) throw std::logic_error("nothing was renamed");
  });
  CHECK(fs::read_symlink(dir / "latest") == "checkpoint_1");
  CHECK_NOTHROW(io::CheckpointReader(dir / "latest").verify());
}
