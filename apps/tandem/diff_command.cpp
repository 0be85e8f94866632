// tandem diff: says where two runs part.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>

#include <c10/util/Exception.h>
#include <nlohmann/json.hpp>

#include "command.h"
#include "io/json_text.h"
#include "run_diff.h"
#include "tandem/core/error.h"
#include "train/printable.h"

namespace tandem_tool {
namespace {

using Json = nlohmann::ordered_json;
using Kind = Parting::Kind;

struct DiffOptions {
  std::string first, second;
  bool everything = false, json = false;
};

const char* name_of(Kind kind) {
  switch (kind) {
    case Kind::value: return "value";
    case Kind::shape: return "shape";
    case Kind::type: return "type";
    case Kind::size: return "size";
    case Kind::only_in_first: return "only in first";
    default: return "only in second";
  }
}

Json to_json(const Parting& parting) {
  Json json{{"what", name_of(parting.kind)}};
  const auto add = [&](const char* key, const std::string& value) {
    if (!value.empty()) json[key] = value;
  };
  if (parting.step) json["step"] = *parting.step;
  add("checkpoint", parting.checkpoint);
  add("file", parting.file);
  add("name", parting.name);
  add("index", parting.index);
  add("parameter", parting.parameter);
  add("first", parting.first);
  add("second", parting.second);
  const ElementDifference& elements = parting.elements;
  if (elements.elements == 0) return json;
  const char* const unit = elements.in_ulps ? "ulps" : "difference";
  if (elements.distance) json[unit] = *elements.distance;
  if (elements.most) json[std::string("most_") + unit] = *elements.most;
  json["different"] = elements.different;
  json["elements"] = elements.elements;
  return json;
}

// The step of the first that is no setting.
std::optional<std::int64_t> first_step(const RunDifference& difference) {
  for (const Parting& parting : difference.partings.all())
    if (!parting.setting) return parting.step;
  return {};
}

Json to_json(const RunDifference& difference) {
  Json json{{"same", difference.partings.all().empty()}};
  if (const auto step = first_step(difference)) json["step"] = *step;
  if (difference.last_same_step) json["last_same_step"] = *difference.last_same_step;
  json["compared"] = {{"number", difference.compared}, {"of", difference.unit}};
  json["differences"] = Json::array();
  for (const Parting& parting : difference.partings.all()) json["differences"].push_back(to_json(parting));
  json["not_listed"] = difference.partings.left_out();
  json["notes"] = difference.notes;
  return json;
}

std::string apart(const ElementDifference& elements, std::uint64_t distance) {
  return std::to_string(distance) + (elements.in_ulps ? " ulp" : "");
}

// "; 4 of 262144 elements differ, at most 3 ulp"
std::string text_of(const ElementDifference& elements) {
  std::string text;
  if (elements.distance && elements.in_ulps && *elements.distance == 0)
    text += ", which differ in the sign of zero";
  else if (elements.distance)
    text += ", " + apart(elements, *elements.distance) + " apart";
  if (elements.elements < 2) return text;
  text += "; " + std::to_string(elements.different) + " of " + std::to_string(elements.elements) + " elements differ";
  return elements.most ? text + ", at most " + apart(elements, *elements.most) : text;
}

std::string what_of(const Parting& parting, const DiffOptions& options) {
  const std::string both = parting.first + " and " + parting.second;
  switch (parting.kind) {
    case Kind::value: return both + text_of(parting.elements);
    case Kind::only_in_first: return "only in " + options.first;
    case Kind::only_in_second: return "only in " + options.second;
    default: return name_of(parting.kind) + (" " + both);
  }
}

std::string text_of(const Parting& parting, const DiffOptions& options) {
  std::string text;
  const auto add = [&](const char* between, const std::string& part) {
    if (!part.empty()) text += (text.empty() ? "" : between) + part;
  };
  if (parting.step) text = "step " + std::to_string(*parting.step);
  if (parting.file.empty() && parting.name.empty() && parting.step && !parting.checkpoint.empty())
    text += " (" + parting.checkpoint + ")";
  else if (!parting.step)
    add("", parting.checkpoint);
  add(": ", parting.file);
  add(parting.file.empty() ? ": " : ", ", parting.name);
  text += parting.index;
  if (!parting.parameter.empty()) text += " (of " + parting.parameter + ")";
  return (text.empty() ? "" : text + ": ") + what_of(parting, options);
}

void print_line(const std::string& text) { std::printf("%s\n", train::printable(text).c_str()); }

void print(const DiffOptions& options, const RunDifference& difference) {
  constexpr std::size_t kMost = 20;
  const auto& all = difference.partings.all();
  if (all.empty()) {
    print_line("equal: " + std::to_string(difference.compared) + " " + difference.unit);
    return;
  }
  for (std::size_t i = 0; i < std::min(all.size(), kMost); ++i) print_line(text_of(all[i], options));
  const std::size_t more = all.size() + difference.partings.left_out();
  if (more > kMost) print_line("and " + std::to_string(more - kMost) + " more, which --json lists");
  if (difference.last_same_step) print_line("the same up to step " + std::to_string(*difference.last_same_step));
  for (const std::string& note : difference.notes) print_line("note: " + note);
}

// As diff: whatever keeps the two from being compared is not 1, which says that they differ.
RunDifference compared(const DiffOptions& options) {
  try {
    return compare_runs(options.first, options.second, options.everything);
  } catch (const c10::Error& error) {
    throw tandem::ConfigError(error.what_without_backtrace());
  } catch (const std::exception& error) {
    throw tandem::ConfigError(error.what());
  }
}

int run(const DiffOptions& options) {
  const RunDifference difference = compared(options);
  if (options.json)
    std::printf("%s\n", tandem::io::shown_json(to_json(difference)).c_str());
  else
    print(options, difference);
  if (std::fflush(stdout) != 0) return apps::kWrongUsage;  // which the program's end tells
  return difference.partings.all().empty() ? apps::kDone : apps::kFailed;
}

}  // namespace

void add_diff(CLI::App& tandem, Commands& commands) {
  const auto options = std::make_shared<DiffOptions>();
  auto* command = tandem.add_subcommand(
      "diff", "Says where two runs part, to the bit: exit code 0 equal, 1 different, 2 they cannot be compared.");
  command
      ->add_option(
          "first", options->first,
          "a checkpoint, a folder of checkpoints by number, a file or folder of weights, a file of torch.save, "
          "a log (--log-json), or the folder of a tracked run (log.jsonl)")
      ->type_name("FILE")
      ->required();
  command->add_option("second", options->second, "another of the kind")->type_name("FILE")->required();
  command->add_flag("--all", options->everything,
                    "compare also what machines and numbers of ranks differ in: times, rates and memory, events, and "
                    "flags that say where a run ran and what it read and wrote");
  command->add_flag("--json", options->json, "print JSON");
  command->footer(
      "Names the first step at which they part, the parameter or field, the element, both values and how many units "
      "in\n"
      "the last place (ulp) of their type lie between them. NaN is equal to NaN of the same bits; 0 and -0 differ.\n\n"
      "Examples:\n  tandem diff one-gpu/checkpoints eight-gpus/checkpoints\n  tandem diff a.safetensors b.safetensors\n"
      "  tandem diff log-1 log-2 --json");
  commands.push_back({command, [options] { return run(*options); }});
}

}  // namespace tandem_tool
