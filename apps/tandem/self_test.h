#pragma once

#include <concepts>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "tandem/runtime/launch_config.h"

namespace tandem_tool {

/// What a part of the self-test has found.
struct SelfTestResult {
  /// `in_words`: what was checked. `of_parts`: figures for the report; null: none.
  template <class Text>
  requires std::convertible_to<Text, std::string> SelfTestResult(Text&& in_words,
                                                                 nlohmann::ordered_json of_parts = nullptr)
      : text(std::forward<Text>(in_words)), figures(std::move(of_parts)) {}

  std::string text;
  nlohmann::ordered_json figures;
};

/// A part of the self-test of a machine's ranks. `run` throws when what it checks does not hold.
struct SelfTestPart {
  std::string name;
  std::function<SelfTestResult(const tandem::LaunchConfig& config)> run;
};

/// All collectives, on several types and sizes, against a plain computation on one thread.
SelfTestPart test_collectives();

/// The losses of a small training on all ranks, against those of one rank with the same global batch.
SelfTestPart test_training();

/// The samples that the ranks get, in both modes of the loader, against the plan.
SelfTestPart test_dispatch();

/// Weights that are saved and loaded again, in the folder for temporary files.
SelfTestPart test_checkpoint();

/// Of GPUs: bytes between each two of them, equal bits in many runs, an exception of one rank, many launches; and what
/// they are worth: the transports by size, and trainings on more and more of them.
std::vector<SelfTestPart> tests_of_gpus();

}  // namespace tandem_tool
