#include "config_file.h"

#include <CLI/CLI.hpp>
#include <fstream>
#include <memory>

#include "options.h"
#include "tandem/core/error.h"

namespace train {
namespace {

using Json = nlohmann::ordered_json;

// As it would be written on the command line.
std::string text_of(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_array()) return value.dump();
  std::string list;
  for (const Json& part : value) list += (list.empty() ? "" : ",") + text_of(part);
  return list;
}

[[noreturn]] void refuse(const std::string& file, const std::string& problem) {
  throw tandem::ConfigError("--config " + file + ": " + problem);
}

Json read(const std::string& file, std::istream& input) {
  try {
    Json json = Json::parse(input);
    if (!json.is_object()) refuse(file, "is no JSON object, such as {\"model\": \"cnn\", \"epochs\": 3}");
    return json;
  } catch (const Json::exception& error) {
    refuse(file, std::string("is no JSON: ") + error.what());
  }
}

// A flag of the command line that says otherwise than this one wins too: --gpus over "cpu".
bool loses(const CLI::Option& setting) {
  const auto& others = setting.get_excludes();
  return std::any_of(others.begin(), others.end(), [](const CLI::Option* other) { return other->count() > 0; });
}

class JsonSettings : public CLI::Config {
 public:
  explicit JsonSettings(CLI::App& app) : app_(app) {}

  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override {
    const auto file = app_.get_config_ptr()->as<std::string>();
    std::vector<CLI::ConfigItem> items;
    const Json settings = read(file, input);
    for (const auto& [key, value] : settings.items()) {
      const CLI::Option* const setting = find_setting(app_, key);
      if (!setting) refuse(file, "the key '" + key + "' is none of train's flags; see train --help");
      if (value.is_null() || value.is_object())
        refuse(file, "'" + key + "' is " + value.dump() + ", which is no value");
      if (const std::string problem = problem_with(key, text_of(value)); !problem.empty())
        refuse(file, "'" + key + "': " + problem);
      if (!loses(*setting)) items.push_back(item(*setting, key, value));
    }
    return items;
  }

  std::string to_config(const CLI::App*, bool, bool, std::string) const override { return {}; }

 private:
  static CLI::ConfigItem item(const CLI::Option& setting, const std::string& key, const Json& value) {
    CLI::ConfigItem item;
    item.name = key;
    if (value.is_array() && setting.get_items_expected_max() > 1)
      for (const Json& part : value) item.inputs.push_back(text_of(part));
    else
      item.inputs.push_back(text_of(value));
    return item;
  }

  CLI::App& app_;
};

}  // namespace

void add_config_flag(CLI::App& app) {
  app.set_config("--config", "", "read flags from this JSON file, which `tandem config` writes; those given here win")
      ->type_name("FILE")
      ->check(CLI::ExistingFile);
  app.config_formatter(std::make_shared<JsonSettings>(app));
}

const CLI::Option* find_setting(const CLI::App& app, const std::string& key) {
  const CLI::Option* const option = app.get_option_no_throw("--" + key);
  return option == app.get_config_ptr() || option == app.get_help_ptr() ? nullptr : option;
}

std::string problem_with(const std::string& key, const std::string& value) {
  const auto app = describe_command_line();
  try {
    app->parse(std::vector<std::string>{"--" + key + "=" + value});
  } catch (const CLI::RequiresError&) {  // another flag, which may come too
  } catch (const CLI::ParseError& error) {
    const std::string text = error.what(), flag = "--" + key + ": ";
    return text.starts_with(flag) ? text.substr(flag.size()) : text;
  }
  return {};
}

}  // namespace train
