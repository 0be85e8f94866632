#include "weights.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <sstream>

#include "io/model_weights.h"
#include "io/output_file.h"
#include "tandem/models/script_module.h"

namespace train {
namespace {

using Names = std::vector<std::string>;

// The first few, for people.
std::string list_of(const Names& names) {
  constexpr std::size_t kMost = 6;
  std::string text;
  for (std::size_t i = 0; i < std::min(names.size(), kMost); ++i) text += (i > 0 ? ", " : "") + names[i];
  if (names.size() > kMost) text += " and " + std::to_string(names.size() - kMost) + " more";
  return text;
}

// The outermost modules that they are of.
Names modules_of(const Names& names) {
  Names modules;
  for (const std::string& name : names) {
    const std::string module = name.substr(0, name.find('.'));
    if (std::find(modules.begin(), modules.end(), module) == modules.end()) modules.push_back(module);
  }
  return modules;
}

std::string with_sizes(const std::string& name, const std::vector<std::int64_t>& sizes) {
  return name + " " + c10::str(at::IntArrayRef(sizes));
}

bool is_in_head(const std::string& name, const Net& net) {
  return name == net.head() || name.starts_with(net.head() + ".");
}

}  // namespace

tandem::io::LoadModelReport set_weights(Net& net, const InitialWeights& weights, const Options& options) {
  const std::string& path = options.init_weights;
  std::string prefix = options.fine_tuning.weights_prefix;
  if (!prefix.empty() && !prefix.ends_with('.')) prefix += '.';
  const bool leaves_head = !weights.other_head.empty();
  const auto rename = [&](const std::string& stored) {
    const std::string name =
        stored.starts_with(prefix) ? net.name_of_stored(stored.substr(prefix.size())) : std::string();
    return leaves_head && is_in_head(name, net) ? std::string() : name;
  };
  const auto require = [&](bool holds, const auto& otherwise) {
    if (!holds) throw tandem::ConfigError("--init-weights " + path + ": " + otherwise());
  };
  try {
    auto plan = tandem::io::plan_load(*weights.stored, net, {.strict = false, .rename = rename});
    const auto& report = plan.report;
    require(report.unknown.empty(), [&] {
      return "the model has no parameter '" + report.unknown.front() + "'" +
             (report.unknown.size() > 1 ? ", nor " + std::to_string(report.unknown.size() - 1) + " others of it" : "") +
             "; its names are " + list_of(report.missing.empty() ? report.taken : report.missing) +
             "; --weights-prefix P takes what has P before these";
    });
    for (const auto& other : report.other_sizes)
      require(is_in_head(other.name, net), [&] {
        return "'" + other.stored + "' has sizes " + c10::str(at::IntArrayRef(other.stored_sizes)) +
               ", the model needs " + c10::str(at::IntArrayRef(other.sizes)) + "; only the head (" + net.head() +
               ") may have others";
      });
    require(!report.taken.empty(), [&] {
      return "has nothing of the model" + (prefix.empty() ? "" : " with the prefix '" + prefix + "'") +
             ", whose names are " + list_of(report.missing);
    });
    plan.copy();
    return report;
  } catch (const tandem::CheckpointError& error) {
    throw tandem::ConfigError(std::string("--init-weights: ") + error.what());
  }
}

std::string describe(const tandem::io::LoadModelReport& report, const InitialWeights& weights,
                     const std::string& path) {
  Names left = report.left, made = report.missing;
  for (const auto& other : report.other_sizes) {
    left.push_back(with_sizes(other.stored, other.stored_sizes));
    made.push_back(with_sizes(other.name, other.sizes));
  }
  std::string text = "weights of " + path + ":\n";
  const auto line = [&](const char* what, const Names& names, const Names& shown) {
    char begin[32];
    std::snprintf(begin, sizeof begin, "  %-10s %6zu  ", what, names.size());
    text += begin + list_of(shown) + "\n";
  };
  line("taken", report.taken, modules_of(report.taken));
  line("left", left, left);
  line("made anew", made, made);
  return weights.other_head.empty() ? text : text + "  the head is made anew, as " + weights.other_head + "\n";
}

std::string half_made(const tandem::io::LoadModelReport& report, const Net& net) {
  Names made;
  for (const std::string& name : report.missing)
    if (!is_in_head(name, net) && net.named_parameters().contains(name)) made.push_back(name);
  return made.empty() ? std::string() : "--init-weights has not all of the backbone; made anew: " + list_of(made);
}

std::string averaged_path(const std::string& weights) {
  return std::filesystem::path(weights).replace_extension(".ema.safetensors").string();
}

void save_weights(const Net& net, const std::string& path, tandem::io::OutputFile& file,
                  const std::map<std::string, std::string>& metadata) {
  if (const auto* script = dynamic_cast<const tandem::models::ScriptModule*>(&net); script && path.ends_with(".pt")) {
    std::ostringstream whole;
    script->save(whole);
    const std::string bytes = std::move(whole).str();
    file.write([&](const tandem::io::WriteBytes& write) { write(bytes.data(), bytes.size()); });
    return;
  }
  const auto tensors = tandem::io::weights_of(net);
  file.write(
      [&](const tandem::io::WriteBytes& write) { tandem::io::write_safetensors(write, path, tensors, metadata); });
}

}  // namespace train
