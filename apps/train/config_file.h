// Settings of train in a JSON file: an object of the flags' names, without dashes, and their values.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace train {

/// Adds --config FILE, whose settings count where the command line says nothing. Parsing throws tandem::ConfigError
/// that names the file and the key for what is unknown or wrong.
void add_config_flag(CLI::App& app);

/// The flag that a key stands for; null when there is none.
const CLI::Option* find_setting(const CLI::App& app, const std::string& key);

/// Why the flag of `key` cannot have this value, in words; empty: it can.
std::string problem_with(const std::string& key, const std::string& value);

}  // namespace train
