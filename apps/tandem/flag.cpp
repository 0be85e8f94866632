#include "flag.h"

#include <sstream>

namespace tandem_tool {
namespace {

// CLI11 shows a set of values as "TEXT:{mlp,cnn,gpt}".
std::string braces_in(const std::string& type) {
  const std::size_t open = type.find('{'), close = type.find('}');
  return open == std::string::npos || close == std::string::npos ? "" : type.substr(open + 1, close - open - 1);
}

}  // namespace

Takes what_takes(const CLI::Option& option) {
  if (option.get_expected_max() == 0) return Takes::nothing;
  const std::string type = option.get_type_name();
  if (!braces_in(type).empty()) return Takes::choice;
  if (type.starts_with("FILE")) return Takes::file;
  return type.starts_with("DIR") ? Takes::directory : Takes::text;
}

std::vector<std::string> choices_of(const CLI::Option& option) {
  std::vector<std::string> choices;
  std::istringstream parts(braces_in(option.get_type_name()));
  for (std::string part; std::getline(parts, part, ',');) choices.push_back(part);
  return choices;
}

std::vector<std::string> names_of(const CLI::Option& option) {
  std::vector<std::string> names;
  for (const std::string& name : option.get_lnames()) names.push_back("--" + name);
  for (const std::string& name : option.get_snames()) names.push_back("-" + name);
  return names;
}

std::vector<Program> all_within(const std::string& name, const CLI::App& app) {
  std::vector<Program> all{{name, &app}};
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; }))
    for (auto& program : all_within(name + " " + sub->get_name(), *sub)) all.push_back(std::move(program));
  return all;
}

}  // namespace tandem_tool
