#pragma once

#include <cstddef>
#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

#include "tandem/core/error.h"

namespace tandem::optim {

/// Throws ConfigError "NAME value is out of range; use RANGE" unless `holds`. False for NaN where `holds` compares.
template <class T>
void require(bool holds, const char* name, T value, const char* range) {
  if (holds) return;
  std::ostringstream text;
  text << name << ' ' << value << " is out of range; use " << range;
  throw ConfigError(text.str());
}

inline void require_count(const char* name, std::int64_t value, std::int64_t least = 1) {
  require(value >= least, name, value, least == 0 ? "0 or more" : "1 or more");
}

/// The value of a parameter group in an option that has one for all groups, or one each.
template <class T>
const T& of_group(const std::vector<T>& values, std::size_t group) {
  return values.size() == 1 ? values.front() : values.at(group);
}

/// Throws ConfigError unless there is one value for all `groups`, or one each.
inline void require_one_or_each(const char* name, std::size_t values, std::size_t groups) {
  if (values == 1 || values == groups) return;
  throw ConfigError(std::string(name) + " has " + std::to_string(values) + " values for " + std::to_string(groups) +
                    " parameter groups; use one for all or one each");
}

}  // namespace tandem::optim
