#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

// What is trained, and what there is to see of it. No Qt here, and no LibTorch: its headers take long to compile, and
// only training.cpp and window.cpp need them.

namespace tandem {
class Accelerator;
struct LaunchConfig;
struct ModelSnapshot;
}  // namespace tandem

/// What the form asks for.
struct Settings {
  std::string data_folder = "data/mnist";
  bool on_gpus = false;         ///< ranks are the first GPUs; otherwise they are on the CPU
  int ranks = 2;                ///< on CPU or GPUs
  int hidden = 128;             ///< units of the hidden layer
  int batch_size = 64;          ///< samples of a rank's batch
  double learning_rate = 0.05;  ///< of SGD with momentum 0.9
  int epochs = 5;
  std::uint64_t seed = 42;
};

/// A digit of the test set, and what the network takes it for.
struct Guess {
  std::array<std::uint8_t, 28 * 28> ink;  ///< by rows; 0: paper
  int digit;
  int guessed;
  double confidence;  ///< 0 to 1
};

/// How the network does at one moment.
struct Preview {
  std::int64_t step = 0;
  int judged = 0;                ///< digits that `accuracy` is about
  double accuracy = 0;           ///< 0 to 1
  std::vector<Guess> guesses{};  ///< of the first ones
};

/// One training: a network that reads handwritten digits. Shared by the ranks, which run it, and the window.
class Training {
 public:
  explicit Training(Settings settings);
  ~Training();

  const Settings& settings() const { return settings_; }
  tandem::LaunchConfig launch_config() const;

  /// The body of the launch: called once on each rank, at the same time.
  void run(tandem::Accelerator& accelerator);

  /// What a network with these weights makes of the test set's first digits. On any thread, once ranks have trained.
  /// Takes some 10 ms: the window's thread can do that once a second. A larger model belongs on a thread of its own;
  /// snapshots can be copied there.
  Preview preview(const tandem::ModelSnapshot& weights) const;

 private:
  struct Data;
  const Data& data();

  const Settings settings_;
  std::once_flag loaded_;
  std::unique_ptr<const Data> data_;
};
