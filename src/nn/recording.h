#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace tandem::nn {

/// What models and optimizers see of a training step that is being recorded, to be replayed without its host code (see
/// Accelerator::compile_step). One rank's.
class Recording {
 public:
  /// What the host has to do at each replay, because the device cannot.
  struct HostWork {
    std::function<std::optional<std::string>()> obstacle{};  ///< why what was recorded is not what is wanted now
    std::function<void()> before{},                          ///< called before the replay of the whole step
        after{};                                             ///< called after it
  };

  virtual ~Recording() = default;

  /// False in the calls before the recording: what they do is done, in the form in which it can be recorded, and what
  /// recording needs can be made.
  virtual bool records() const = 0;

  /// `work` is done at each replay, and not now.
  virtual void at_each_replay(HostWork work) = 0;

  /// `work` cannot be recorded. Replays do it between what was recorded before and after it; it is not done now. All
  /// ranks give the same `signature`.
  virtual void between(std::function<void()> work, std::uint64_t signature) = 0;
};

}  // namespace tandem::nn
