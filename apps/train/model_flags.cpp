#include "model_flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>

#include "tandem/core/error.h"
#include "tandem/models/gpt2.h"

namespace train {
namespace {

const std::map<std::string, ModelKind> kModels{{"mlp", ModelKind::mlp},           {"cnn", ModelKind::cnn},
                                               {"resnet18", ModelKind::resnet18}, {"resnet34", ModelKind::resnet34},
                                               {"resnet50", ModelKind::resnet50}, {"vit_b_16", ModelKind::vit_b_16},
                                               {"gpt", ModelKind::gpt},           {"gpt2", ModelKind::gpt2}};

const std::vector<ModelKind> kImageModels{ModelKind::mlp,      ModelKind::cnn,      ModelKind::resnet18,
                                          ModelKind::resnet34, ModelKind::resnet50, ModelKind::vit_b_16,
                                          ModelKind::script};
const std::vector<ModelKind> kTextModels{ModelKind::gpt, ModelKind::gpt2};
const std::vector<ModelKind> kCheckpointed{ModelKind::resnet18, ModelKind::resnet34, ModelKind::resnet50,
                                           ModelKind::vit_b_16, ModelKind::gpt,      ModelKind::gpt2};

// Flags that go with some models only.
const std::map<std::string, std::vector<ModelKind>> kFlagsOfModels{
    {"--hidden", {ModelKind::mlp}}, {"--data-dir", kImageModels},    {"--normalize", kImageModels},
    {"--tokens", kTextModels},      {"--vocabulary", kTextModels},   {"--block-size", kTextModels},
    {"--layers", kTextModels},      {"--width", kTextModels},        {"--heads", kTextModels},
    {"--dropout", kTextModels},     {"--sample-bytes", kTextModels}, {"--checkpoint-activations", kCheckpointed}};

bool is_script_file(const std::string& name) { return name.ends_with(".pt"); }

ModelKind kind_of(const std::string& name) {
  const auto found = kModels.find(name);
  return found == kModels.end() ? ModelKind::script : found->second;
}

// Shown as the names alone, which completions are made of.
CLI::Validator model_name() {
  return CLI::Validator(
      [](std::string& text) {
        if (is_script_file(text) || kModels.contains(text)) return std::string();
        std::string all;
        for (const auto& [name, kind] : kModels) all += name + ", ";
        return text + " is none of " + all + "nor a file of TorchScript, whose name ends with .pt";
      },
      CLI::IsMember(kModels).get_description());
}

std::string names_of(const std::vector<ModelKind>& models) {
  std::string names;
  for (const ModelKind model : models)
    names += (names.empty() ? "" : model == models.back() ? " and " : ", ") + name_of(model);
  return names;
}

bool goes_with(const std::vector<ModelKind>& models, ModelKind model) {
  return std::find(models.begin(), models.end(), model) != models.end();
}

void check_sizes(ModelKind model, const GptOptions& gpt) {
  constexpr std::int64_t kPositions = 1024;  // of GPT-2
  if (model == ModelKind::gpt2 && gpt.block_size > kPositions)
    throw tandem::ConfigError("--block-size " + std::to_string(gpt.block_size) + " is more than the " +
                              std::to_string(kPositions) + " tokens that gpt2 sees");
  if (gpt.width % gpt.heads != 0)
    throw tandem::ConfigError("--width " + std::to_string(gpt.width) + " does not divide by --heads " +
                              std::to_string(gpt.heads) + "; use a multiple of it");
}

}  // namespace

CLI::Option* add_model_flags(CLI::App& app, ModelFlags& flags) {
  auto* model =
      app.add_option("--model", flags.model, "which network: one of these, or a file of TorchScript, such as net.pt")
          ->check(model_name())
          ->capture_default_str();
  app.add_option("--hidden", flags.hidden, "widths of the mlp's hidden layers (default: 512,512)")
      ->delimiter(',')
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{65536}));
  const auto size = [&](const char* flag, std::int64_t& value, std::int64_t most, const char* what) {
    app.add_option(flag, value, what)->check(CLI::Range(std::int64_t{1}, most))->capture_default_str();
  };
  size("--block-size", flags.block_size, 1'000'000, "bytes or tokens of the text that the gpt or gpt2 sees");
  const auto size_of_model = [&](const char* flag, std::optional<std::int64_t>& value, std::int64_t most,
                                 const char* what) {
    app.add_option(flag, value, what)->check(CLI::Range(std::int64_t{1}, most));
  };
  size_of_model("--layers", flags.layers, 10'000, "of the gpt (default: 4) or gpt2 (12)");
  size_of_model("--width", flags.width, 65536, "of the layers of the gpt (default: 128) or gpt2 (768)");
  size_of_model("--heads", flags.heads, 65536, "of the attention of the gpt (default: 4) or gpt2 (12)");
  size_of_model("--vocabulary", flags.vocabulary, 10'000'000,
                "token ids that the gpt or gpt2 knows (default: 256 for bytes, 50257 for files of token ids)");
  app.add_flag("--checkpoint-activations", flags.checkpoint,
               "compute the layers again in backward passes: the same training with less memory, in more time");
  return model;
}

Options read_model_flags(const ModelFlags& flags) {
  Options options;
  options.model = kind_of(flags.model);
  if (options.model == ModelKind::script) options.script = flags.model;
  options.hidden = flags.hidden;
  options.checkpoint_activations = flags.checkpoint;
  const bool gpt2 = options.model == ModelKind::gpt2;
  const tandem::models::Gpt2Options sizes_of_gpt2;
  options.gpt.block_size = flags.block_size;
  options.gpt.layers = flags.layers.value_or(gpt2 ? sizes_of_gpt2.layers : options.gpt.layers);
  options.gpt.width = flags.width.value_or(gpt2 ? sizes_of_gpt2.width : options.gpt.width);
  options.gpt.heads = flags.heads.value_or(gpt2 ? sizes_of_gpt2.heads : options.gpt.heads);
  options.gpt.dropout = flags.dropout.value_or(gpt2 ? sizes_of_gpt2.dropout : options.gpt.dropout);
  options.gpt.vocabulary = flags.vocabulary.value_or(options.gpt.vocabulary);
  check_sizes(options.model, options.gpt);
  return options;
}

bool flag_goes_with(const std::string& flag, const std::string& model) {
  const auto found = kFlagsOfModels.find(flag);
  return found == kFlagsOfModels.end() || goes_with(found->second, kind_of(model));
}

void check_flags_of_models(const CLI::App& app, const std::string& name) {
  const ModelKind model = kind_of(name);
  for (const auto& [flag, models] : kFlagsOfModels)
    if (const auto* given = app.get_option_no_throw(flag); given && given->count() > 0 && !goes_with(models, model))
      throw tandem::ConfigError(flag + " does not go with --model " + name + "; it belongs to " + names_of(models));
}

const std::string& name_of(ModelKind model) {
  static const std::string script = "script";
  if (model == ModelKind::script) return script;
  return std::find_if(kModels.begin(), kModels.end(), [&](const auto& entry) { return entry.second == model; })->first;
}

bool is_text_model(ModelKind model) { return goes_with(kTextModels, model); }

}  // namespace train
