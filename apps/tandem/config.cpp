// tandem config: asks what to train and how, and writes it as a file for train --config.
#include <algorithm>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "command.h"
#include "flag.h"
#include "io/json_text.h"
#include "io/output_file.h"
#include "tandem/core/error.h"
#include "train/config_file.h"
#include "train/model_flags.h"
#include "train/options.h"

namespace tandem_tool {
namespace {

using Json = nlohmann::ordered_json;

// In the order in which they are asked. What they mean, their defaults and what is right is in train's command line.
const std::vector<std::string> kAsked{
    "model",           "hidden", "layers",       "width",        "heads",          "block-size",
    "data-file",       "tokens", "data-dir",     "cpu",          "batch-size",     "epochs",
    "optimizer",       "lr",     "scheduler",    "weight-decay", "clip-grad-norm", "gradient-accumulation-steps",
    "mixed-precision", "seed",   "save-weights", "log-json"};

std::string question(const std::string& key, const CLI::Option& setting) {
  std::string text = key + ": " + setting.get_description();
  std::string choices;
  for (const auto& choice : choices_of(setting)) choices += (choices.empty() ? "" : ", ") + choice;
  if (!choices.empty()) text += " (" + choices + ")";
  if (!setting.get_default_str().empty()) text += " [" + setting.get_default_str() + "]";
  return text + ": ";
}

// Numbers as such, and lists of them.
Json value_of(const std::string& answer) {
  for (const std::string& text : {answer, "[" + answer + "]"}) {
    const Json json = Json::parse(text, nullptr, false);
    if (json.is_number() || (json.is_array() && json.size() > 1)) return json;
  }
  return answer;
}

std::string trimmed(const std::string& text) {
  const std::size_t begin = text.find_first_not_of(" \t\r");
  return begin == std::string::npos ? "" : text.substr(begin, text.find_last_not_of(" \t\r") - begin + 1);
}

// What is answered, or the default; nothing where there is none and nothing is answered.
std::optional<std::string> ask(const std::string& key, const CLI::Option& setting) {
  for (;;) {
    std::printf("%s", question(key, setting).c_str());
    std::fflush(stdout);
    std::string line;
    if (!std::getline(std::cin, line)) {
      std::printf("\n");
      std::fflush(stdout);
      throw tandem::ConfigError("the input ended at the question for '" + key + "'; nothing was written");
    }
    const std::string answer = trimmed(line);
    if (answer.empty()) {
      if (setting.get_default_str().empty()) return std::nullopt;
      return setting.get_default_str();
    }
    const std::string problem = tandem::io::is_utf8(answer)
                                    ? train::problem_with(key, answer)
                                    : "is no UTF-8, which the file has to be; give it on train's command line";
    if (problem.empty()) return answer;
    std::printf("  %s\n", problem.c_str());
  }
}

// Whether an answer that was given says otherwise than this setting could.
bool is_excluded(const CLI::Option& setting, const Json& settings) {
  const auto& others = setting.get_excludes();
  return std::any_of(others.begin(), others.end(),
                     [&](const CLI::Option* other) { return settings.contains(other->get_single_name()); });
}

// What goes wrong only when several settings meet, or on this machine.
void check(const std::string& path) {
  std::vector<std::string> words{"train", "--config", path};
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  try {
    train::parse_options(static_cast<int>(argv.size()), argv.data());
  } catch (const tandem::ConfigError& error) {
    throw tandem::ConfigError("'" + path + "' is written, but train would refuse it: " + error.what());
  }
}

int ask_and_write(const std::string& path, bool force) {
  std::error_code error;
  tandem::io::OutputFile file(path);
  const bool stream = file.is_stream();
  if (!force && !stream && std::filesystem::exists(path, error))
    throw tandem::ConfigError("'" + path + "' is there already; --force replaces it");
  file.check();
  const auto flags = train::describe_command_line();
  std::printf("Enter takes what is in brackets, or leaves a setting out.\n");
  Json settings = Json::object();
  std::string model = "mlp";
  for (const std::string& key : kAsked) {
    const CLI::Option& setting = *train::find_setting(*flags, key);
    if (!train::flag_goes_with("--" + key, model) || is_excluded(setting, settings)) continue;
    const auto answer = ask(key, setting);
    if (answer) settings[key] = value_of(*answer);
    if (key == "model") model = *answer;
  }
  const std::string text = tandem::io::exact_json(settings, path, 1) + "\n";
  file.write([&](const tandem::io::WriteBytes& write) { write(text.data(), text.size()); });
  if (stream) return apps::kDone;
  check(path);
  std::printf("written: %s; train with it: train --config %s\n", path.c_str(), path.c_str());
  return apps::kDone;
}

}  // namespace

void add_config(CLI::App& tandem, Commands& commands) {
  struct Options {
    std::string path = "train.json";
    bool force = false;
  };
  const auto options = std::make_shared<Options>();
  auto* config = tandem.add_subcommand("config", "Asks what to train and how, and writes it for train --config.");
  config->add_option("file", options->path, "what to write")->type_name("FILE")->capture_default_str();
  config->add_flag("--force", options->force, "replace the file if it is there");
  config->footer("Examples:\n  tandem config\n  tandem config cnn.json && train --config cnn.json --epochs 1");
  commands.push_back({config, [options] { return ask_and_write(options->path, options->force); }});
}

}  // namespace tandem_tool
