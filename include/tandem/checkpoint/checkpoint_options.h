#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include <ATen/core/ivalue.h>

namespace tandem::io {
class CheckpointSeries;
}

namespace tandem {

/// Where a launch's checkpoints go when save_state and load_state name no directory.
struct CheckpointOptions {
  std::string directory{};                    ///< holds `checkpoint_0` and so on; see io/checkpoint_series.h
  std::optional<std::int64_t> total_limit{};  ///< of checkpoints there: the oldest go; at least 1

  /// The right to write there, which only one process or launch has at a time. Empty: the first save_state takes it,
  /// until the end of the launch, and throws CheckpointError where another process or launch has it. A program that has
  /// begun the series itself hears of that before it trains.
  std::shared_ptr<io::CheckpointSeries> series{};
};

/// What a save in the background does while the one before is still being written.
enum class WhenBusy {
  wait,  ///< waits for it
  skip   ///< leaves this one out
};

/// How a state is saved.
///
/// Of an optimizer of a class of the program's are saved: what its state() holds, by the states' serialize(), and what
/// its save() writes. One with members that no save() writes is a ConfigError that says what to add, unless they are
/// numbers that have not changed since it was prepared. (It is prepared as the class that it is: a
/// torch::optim::Optimizer& hides them, which is a warning.)
struct SaveStateOptions {
  /// The ranks stop only while the state is copied; threads of rank 0 write the copy. Memory for the copy is kept for
  /// the next.
  bool background = false;
  WhenBusy when_busy = WhenBusy::wait;             ///< with `background`
  std::uint64_t max_shard_bytes = 10'000'000'000;  ///< as io::ModelFileOptions
};

/// Whose settings count where a program and the checkpoint that it goes on from both have some.
enum class SettingsOf {
  checkpoint,  ///< those with which the training was saved
  program      ///< those that the program has set by the time of the call
};

/// How a training goes on from a checkpoint. Whatever is chosen here: weights, the optimizers' state (momentum buffers
/// and so on), counts of updates, places in the data, generators and the scaler's scale are the checkpoint's; the shape
/// of a schedule (its class, lengths, factors, functions), accumulation, precision, data and all of LaunchConfig are
/// the program's. So a schedule goes on as the program has made it now, at the step of the checkpoint: a cosine that
/// has become longer gives the rate that the longer one has there. (LibTorch's own schedulers do not tell what they
/// are: they are stepped as often, and the rates are the checkpoint's.) An optimizer's state goes to the parameters of
/// the same names, where all have names in prepared models, and otherwise by position.
struct LoadStateOptions {
  /// Of the options of the optimizers' parameter groups: learning rate, momentum, betas, weight decay and so on; of the
  /// rates that schedulers begin with; and of the scaler's factors and interval. With `program` a training goes on at
  /// the rate that this program's schedule has by then over this program's learning rate. (A ReduceLROnPlateau: at the
  /// share of it that the metrics have left.)
  SettingsOf optimizer_options = SettingsOf::checkpoint;
};

/// Is called when a save in the background has ended, on the thread that wrote it.
using SaveWritten = std::function<void(const std::string& directory, const std::exception_ptr& error)>;

/// An object of the program's that is part of the state. See Accelerator::register_for_checkpointing.
struct StateObject {
  std::function<c10::IValue()> save;                   ///< called on rank 0
  std::function<void(const c10::IValue& state)> load;  ///< called on every rank, with what `save` gave
};

/// Files of the program's own in a checkpoint, by name.
using StateFiles = std::map<std::string, std::string>;

/// Gives files to a checkpoint, and takes them back. See Accelerator::register_state_hooks.
struct StateHooks {
  std::function<StateFiles()> save;                   ///< called on rank 0; may be empty
  std::function<void(const StateFiles& files)> load;  ///< called on every rank; may be empty
};

}  // namespace tandem
