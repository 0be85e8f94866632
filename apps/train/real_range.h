#pragma once

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdlib>
#include <string>

namespace train {

/// A range of its ends and what is between; CLI::Range lets NaN pass.
inline CLI::Validator real_range(double least, double most) {
  const CLI::Validator is_number(
      [](std::string& text) { return std::isnan(std::atof(text.c_str())) ? text + " is no number" : std::string(); },
      "");
  return CLI::Range(least, most) & is_number;
}

}  // namespace train
