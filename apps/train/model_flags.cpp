#include "model_flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>

#include "tandem/core/error.h"

namespace train {
namespace {

const std::map<std::string, ModelKind> kModels{
    {"mlp", ModelKind::mlp}, {"cnn", ModelKind::cnn}, {"gpt", ModelKind::gpt}};

// Flags that go with some models only.
const std::map<std::string, std::vector<ModelKind>> kFlagsOfModels{{"--hidden", {ModelKind::mlp}},
                                                                   {"--data-dir", {ModelKind::mlp, ModelKind::cnn}},
                                                                   {"--normalize", {ModelKind::mlp, ModelKind::cnn}},
                                                                   {"--data-file", {ModelKind::gpt}},
                                                                   {"--block-size", {ModelKind::gpt}},
                                                                   {"--layers", {ModelKind::gpt}},
                                                                   {"--width", {ModelKind::gpt}},
                                                                   {"--heads", {ModelKind::gpt}},
                                                                   {"--dropout", {ModelKind::gpt}},
                                                                   {"--checkpoint-activations", {ModelKind::gpt}},
                                                                   {"--sample-bytes", {ModelKind::gpt}}};

bool goes_with(const std::vector<ModelKind>& models, ModelKind model) {
  return std::find(models.begin(), models.end(), model) != models.end();
}

void check_heads(const GptOptions& gpt) {
  if (gpt.width % gpt.heads != 0)
    throw tandem::ConfigError("--width " + std::to_string(gpt.width) + " does not divide by --heads " +
                              std::to_string(gpt.heads) + "; use a multiple of it");
}

}  // namespace

CLI::Option* add_model_flags(CLI::App& app, ModelFlags& flags) {
  auto* model =
      app.add_option("--model", flags.model, "which network")->check(CLI::IsMember(kModels))->capture_default_str();
  app.add_option("--hidden", flags.hidden, "widths of the mlp's hidden layers (default: 512,512)")
      ->delimiter(',')
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{65536}));
  const auto size = [&](const char* flag, std::int64_t& value, std::int64_t most, const char* what) {
    app.add_option(flag, value, what)->check(CLI::Range(std::int64_t{1}, most))->capture_default_str();
  };
  size("--block-size", flags.gpt.block_size, 1'000'000, "bytes that the gpt sees of the text");
  size("--layers", flags.gpt.layers, 10'000, "of the gpt");
  size("--width", flags.gpt.width, 65536, "of the gpt's layers, a multiple of --heads");
  size("--heads", flags.gpt.heads, 65536, "of the gpt's attention");
  app.add_flag("--checkpoint-activations", flags.gpt.checkpoint,
               "compute the gpt's layers again in backward passes: the same training with less memory, in more time");
  return model;
}

Options read_model_flags(const ModelFlags& flags) {
  Options options;
  options.model = kModels.at(flags.model);
  options.hidden = flags.hidden;
  options.gpt = flags.gpt;
  check_heads(options.gpt);
  return options;
}

bool flag_goes_with(const std::string& flag, const std::string& model) {
  const auto found = kFlagsOfModels.find(flag);
  return found == kFlagsOfModels.end() || goes_with(found->second, kModels.at(model));
}

void check_flags_of_models(const CLI::App& app, const std::string& name) {
  const ModelKind model = kModels.at(name);
  for (const auto& [flag, models] : kFlagsOfModels)
    if (const auto* given = app.get_option_no_throw(flag); given && given->count() > 0 && !goes_with(models, model))
      throw tandem::ConfigError(flag + " does not go with --model " + name_of(model) + "; it belongs to " +
                                name_of(models.front()) + (models.size() > 1 ? " and " + name_of(models.back()) : ""));
}

const std::string& name_of(ModelKind model) {
  return std::find_if(kModels.begin(), kModels.end(), [&](const auto& entry) { return entry.second == model; })->first;
}

}  // namespace train
