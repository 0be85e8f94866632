#include "fine_tuning.h"

#include <fnmatch.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <optional>

#include "tandem/core/error.h"

namespace train {
namespace {

bool is_under(const std::string& module, const std::string& name) {
  return name == module || name.starts_with(module + ".");
}

bool means(const std::string& pattern, const std::string& name, const Net& net) {
  if (pattern == "backbone") return !is_under(net.head(), name);
  if (pattern == "head" && is_under(net.head(), name)) return true;
  return ::fnmatch(pattern.c_str(), name.c_str(), 0) == 0 || ::fnmatch((pattern + ".*").c_str(), name.c_str(), 0) == 0;
}

// What a pattern may be, for people.
std::string names_for_patterns(const Net& net) {
  std::vector<std::string> modules;
  for (const auto& item : net.named_parameters()) {
    const std::string module = item.key().substr(0, item.key().find('.'));
    if (modules.empty() || modules.back() != module) modules.push_back(module);
  }
  std::string text = "backbone, head";
  for (const std::string& module : modules) text += ", " + module;
  return text + ", or longer names such as " + net.named_parameters().front().key();
}

[[noreturn]] void throw_meaningless(const std::string& flag, const std::string& pattern, const Net& net) {
  throw tandem::ConfigError(flag + " " + pattern + " means no parameter of the network; use " +
                            names_for_patterns(net));
}

struct Scale {
  std::string pattern;
  double factor;
};

// Reads "PATTERN=FACTOR"; nothing when it is none.
std::optional<Scale> read_scale(const std::string& text) {
  const std::size_t equals = text.rfind('=');
  if (equals == std::string::npos || equals == 0) return {};
  Scale scale{text.substr(0, equals), 0};
  const char* const end = text.data() + text.size();
  const auto [read, error] = std::from_chars(text.data() + equals + 1, end, scale.factor);
  if (error != std::errc() || read != end || !(scale.factor > 0 && scale.factor <= 1e6)) return {};
  return scale;
}

std::string check_scale(const std::string& text) {
  return read_scale(text) ? ""
                          : text + " is no PATTERN=FACTOR with a factor above 0 and up to 1000000, such as layer1=0.1";
}

bool is_bias_or_norm(const std::string& name, const at::Tensor& parameter) {
  return parameter.dim() < 2 || name.ends_with("bias");
}

}  // namespace

void add_fine_tuning_flags(CLI::App& app, FineTuning& options) {
  app.add_option("--weights-prefix", options.weights_prefix,
                 "take of --init-weights what has this prefix, and leave the prefix out")
      ->needs(app.get_option("--init-weights"));
  app.add_option("--freeze", options.freeze,
                 "leave these parameters as they are: backbone (all but the head), a module such as layer1, a name, or "
                 "a pattern with *; several with commas")
      ->delimiter(',')
      ->allow_extra_args(false);
  app.add_option("--lr-scale", options.lr_scale,
                 "learning rate of some parameters by that of the others, as backbone=0.1; several with commas")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("PATTERN=FACTOR")
      ->check(CLI::Validator([](std::string& text) { return check_scale(text); }, ""));
  app.add_flag("--decay-norms", options.decay_norms, "have --weight-decay on biases and norms too");
}

void freeze(Net& net, const FineTuning& options) {
  auto parameters = net.named_parameters();
  for (const std::string& pattern : options.freeze) {
    bool found = false;
    for (auto& item : parameters) {
      if (!means(pattern, item.key(), net)) continue;
      item.value().set_requires_grad(false);
      found = true;
    }
    if (!found) throw_meaningless("--freeze", pattern, net);
  }
  if (std::none_of(parameters.begin(), parameters.end(), [](const auto& item) { return item.value().requires_grad(); }))
    throw tandem::ConfigError("--freeze leaves no parameter to train; use fewer patterns");
}

std::vector<ParameterGroup> group_parameters(const Net& net, const FineTuning& options) {
  std::vector<Scale> scales;
  for (const std::string& text : options.lr_scale) scales.push_back(read_scale(text).value());
  std::vector<bool> found(scales.size());
  std::vector<ParameterGroup> groups;
  for (const auto& item : net.named_parameters()) {
    if (!item.value().requires_grad()) continue;
    double scale = 1.0;
    for (std::size_t i = 0; i < scales.size(); ++i)
      if (means(scales[i].pattern, item.key(), net)) {
        scale = scales[i].factor;  // that of the last one
        found[i] = true;
      }
    const bool decays = options.decay_norms || !is_bias_or_norm(item.key(), item.value());
    auto group = std::find_if(groups.begin(), groups.end(),
                              [&](const auto& g) { return g.lr_scale == scale && g.decays == decays; });
    if (group == groups.end()) group = groups.insert(groups.end(), {scale, decays, {}});
    group->parameters.push_back(item.value());
  }
  for (std::size_t i = 0; i < scales.size(); ++i)
    if (!found[i]) throw_meaningless("--lr-scale", scales[i].pattern, net);
  std::stable_partition(groups.begin(), groups.end(), [](const auto& group) { return group.lr_scale == 1.0; });
  return groups;
}

}  // namespace train
