#pragma once

#include <string>

#include <nlohmann/json.hpp>

namespace tandem_tool {

/// What `tandem env --json` prints.
nlohmann::ordered_json describe_environment();

/// `text` without the names of this host and its user, and without paths: for what is sent to others.
std::string without_names(const std::string& text);

}  // namespace tandem_tool
