// tandem checkpoint: looks at directories and files of weights, and makes others of them.
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include <nlohmann/json.hpp>

#include "command.h"
#include "convert.h"
#include "io/json_text.h"
#include "io/model_source.h"
#include "io/output_file.h"
#include "stored_tensors.h"
#include "tandem/core/error.h"
#include "tolerant_diff.h"

namespace tandem_tool {
namespace {

namespace io = tandem::io;
using Json = nlohmann::ordered_json;

// What a directory or file of weights is, as far as it can be told without reading the tensors.
struct Contents {
  std::optional<io::CheckpointReader> manifest;
  std::unique_ptr<StoredTensors> tensors;  // null: there are none
};

bool has_model(const io::CheckpointReader& manifest) {
  return manifest.has(io::kSingleModelFile) || manifest.has(io::kModelIndex);
}

Contents look_at(const std::string& path) {
  Contents contents;
  std::error_code error;
  if (std::filesystem::exists(std::filesystem::path(path) / "manifest.json", error)) contents.manifest.emplace(path);
  if (!contents.manifest || has_model(*contents.manifest)) contents.tensors = std::make_unique<StoredTensors>(path);
  return contents;
}

Json describe(const Contents& contents) {
  Json json;
  if (contents.manifest) {
    json["info"] = contents.manifest->info();
    for (const auto& name : contents.manifest->names()) json["files"][name] = contents.manifest->bytes_of(name);
  }
  if (!contents.tensors) return json;
  json["metadata"] = contents.tensors->metadata();
  json["bytes"] = contents.tensors->bytes();
  json["tensors"] = Json::array();
  for (const auto& entry : contents.tensors->entries()) {
    const io::StoredTensor& tensor = entry.tensor;
    json["tensors"].push_back(
        {{"name", tensor.name}, {"type", tensor.dtype}, {"shape", tensor.shape}, {"bytes", tensor.bytes()}});
    if (!entry.file.empty()) json["tensors"].back()["file"] = entry.file;
  }
  return json;
}

void print(const Json& json) {
  const auto bytes = [](const Json& value) { return static_cast<unsigned long long>(value.get<std::uint64_t>()); };
  for (const char* group : {"info", "metadata"})
    if (json.contains(group))
      for (const auto& [key, value] : json[group].items())
        std::printf("%s: %s\n", key.c_str(), value.get<std::string>().c_str());
  if (json.contains("files"))
    for (const auto& [name, size] : json["files"].items()) std::printf("%16llu  %s\n", bytes(size), name.c_str());
  if (!json.contains("tensors")) return;
  for (const auto& tensor : json["tensors"])
    std::printf("%16llu  %-11s %-20s %s%s\n", bytes(tensor["bytes"]), tensor["type"].get<std::string>().c_str(),
                tensor["shape"].dump().c_str(), tensor["name"].get<std::string>().c_str(),
                tensor.contains("file") ? ("  in " + tensor["file"].get<std::string>()).c_str() : "");
  std::printf("%16llu  bytes of %zu tensors\n", bytes(json["bytes"]), json["tensors"].size());
}

struct PathOptions {
  std::string path;
  bool json = false;
};

int show(const PathOptions& options) {
  const Json json = describe(look_at(options.path));
  if (options.json)
    std::printf("%s\n", io::shown_json(json).c_str());
  else
    print(json);
  return apps::kDone;
}

int verify(const PathOptions& options) {
  const Contents contents = look_at(options.path);
  if (contents.manifest) contents.manifest->verify();
  const std::size_t files = contents.manifest            ? contents.manifest->names().size()
                            : contents.tensors->source() ? io::ModelSource(*contents.tensors->source()).files().size()
                                                         : 1;
  const char* const how =
      contents.manifest ? "checksums and structure" : "structure and sizes (there are no checksums)";
  if (options.json)
    std::printf("%s\n", io::shown_json(Json{{"whole", true}, {"files", files}, {"checked", how}}).c_str());
  else
    std::printf("whole: %zu file%s, by %s\n", files, files == 1 ? "" : "s", how);
  return apps::kDone;
}

struct CheckpointDiffOptions {
  std::string first, second;
  double tolerance = 0;
  bool json = false;
};

// JSON has no NaN.
Json number(double value) { return std::isfinite(value) ? Json(value) : Json(std::to_string(value)); }

Json to_json(const Difference& difference) {
  Json tensors = Json::array();
  for (const auto& tensor : difference.tensors) {
    tensors.push_back({{"name", tensor.name}, {"what", tensor.what}});
    if (tensor.largest) tensors.back()["largest"] = number(*tensor.largest);
  }
  return {{"same", difference.none()},
          {"equal", difference.equal},
          {"only_in_first", difference.only_in_first},
          {"only_in_second", difference.only_in_second},
          {"different", tensors}};
}

void print(const CheckpointDiffOptions& options, const Difference& difference) {
  for (const auto& name : difference.only_in_first)
    std::printf("%s: only in %s\n", name.c_str(), options.first.c_str());
  for (const auto& name : difference.only_in_second)
    std::printf("%s: only in %s\n", name.c_str(), options.second.c_str());
  for (const auto& tensor : difference.tensors) {
    std::printf("%s: %s", tensor.name.c_str(), tensor.what.c_str());
    if (tensor.largest) std::printf(", largest difference %g", *tensor.largest);
    std::printf("\n");
  }
  std::printf("%zu tensors are the same%s\n", difference.equal, difference.none() ? ", and there are no others" : "");
}

int diff(const CheckpointDiffOptions& options) {
  const Difference difference = compare(options.first, options.second, options.tolerance);
  if (options.json)
    std::printf("%s\n", io::shown_json(to_json(difference)).c_str());
  else
    print(options, difference);
  return difference.none() ? apps::kDone : apps::kFailed;
}

void add_path_command(CLI::App& checkpoint, Commands& commands, const char* name, const char* what,
                      int (*run)(const PathOptions&), const char* footer) {
  const auto options = std::make_shared<PathOptions>();
  auto* command = checkpoint.add_subcommand(name, what);
  command
      ->add_option("path", options->path,
                   "a directory of Tandem's or Hugging Face's, or a file of safetensors or torch.save")
      ->type_name("FILE")
      ->required();
  command->add_flag("--json", options->json, "print JSON");
  command->footer(footer);
  commands.push_back({command, [options, run] { return run(*options); }});
}

void add_weights_diff(CLI::App& checkpoint, Commands& commands) {
  const auto options = std::make_shared<CheckpointDiffOptions>();
  auto* command = checkpoint.add_subcommand("diff", "Compares the tensors of two; exit code 1 when they differ.");
  command->add_option("first", options->first, "a directory or file of weights")->type_name("FILE")->required();
  command->add_option("second", options->second, "another")->type_name("FILE")->required();
  command->add_option("--tolerance", options->tolerance, "absolute difference up to which numbers are the same")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_flag("--json", options->json, "print JSON");
  command->footer("Examples:\n  tandem checkpoint diff out before.safetensors --tolerance 1e-6");
  commands.push_back({command, [options] { return diff(*options); }});
}

int report(const Conversion& conversion) {
  convert(conversion);
  if (!tandem::io::OutputFile(conversion.to).is_stream())  // which that would be part of
    std::printf("written: %s\n", conversion.to.c_str());
  return apps::kDone;
}

void add_convert(CLI::App& checkpoint, Commands& commands) {
  struct Options {
    Conversion conversion;
    std::string type, size = "10GB";
  };
  const auto options = std::make_shared<Options>();
  auto* command = checkpoint.add_subcommand(
      "convert", "Writes the weights of a directory or file with another type or in files of another size.");
  command->add_option("from", options->conversion.from, "a directory or file of weights")
      ->type_name("FILE")
      ->required();
  command
      ->add_option(
          "to", options->conversion.to,
          "what will be written: a directory, or a file that ends in .safetensors, which must not be there yet; or a "
          "device or pipe, such as /dev/stdout, for one file")
      ->type_name("FILE")
      ->required();
  const std::map<std::string, at::ScalarType> types{{"fp32", at::kFloat}, {"bf16", at::kBFloat16}, {"fp16", at::kHalf}};
  command->add_option("--type", options->type, "of all tensors of floating-point numbers (default: as they are)")
      ->check(CLI::IsMember(types));
  command->add_option("--max-shard-size", options->size, "largest file of a directory, such as 500MB")
      ->capture_default_str();
  command->footer(
      "Examples:\n  tandem checkpoint convert out out-bf16 --type bf16 --max-shard-size 5GB\n"
      "  tandem checkpoint convert shards one.safetensors");
  commands.push_back({command, [options, types] {
                        Conversion conversion = options->conversion;
                        if (!options->type.empty()) conversion.type = types.at(options->type);
                        conversion.max_shard_bytes = parse_bytes(options->size);
                        return report(conversion);
                      }});
}

void add_merge(CLI::App& checkpoint, Commands& commands) {
  const auto options = std::make_shared<Conversion>();
  auto* command = checkpoint.add_subcommand("merge", "Writes the weights of a directory as one safetensors file.");
  command->add_option("from", options->from, "a directory")->type_name("DIR")->required();
  command
      ->add_option("to", options->to, "a file that ends in .safetensors and must not be there yet, or a device or pipe")
      ->type_name("FILE")
      ->required()
      ->check([](const std::string& path) {
        const bool fits = path.ends_with(".safetensors") || tandem::io::OutputFile(path).is_stream();
        return fits ? "" : "'" + path + "' does not end in .safetensors";
      });
  command->footer("Examples:\n  tandem checkpoint merge shards model.safetensors");
  commands.push_back({command, [options] { return report(*options); }});
}

}  // namespace

void add_checkpoint(CLI::App& tandem, Commands& commands) {
  auto* checkpoint = tandem.add_subcommand("checkpoint", "Shows, checks, compares and converts files of weights.");
  checkpoint->require_subcommand(1);
  checkpoint->footer("Examples:\n  tandem checkpoint show out\n  tandem checkpoint verify out");
  add_path_command(*checkpoint, commands, "show", "Shows the manifest, and the tensors with type and shape.", show,
                   "Examples:\n  tandem checkpoint show out\n  tandem checkpoint show model.safetensors --json");
  add_path_command(*checkpoint, commands, "verify",
                   "Reads everything and names the first file that is damaged; exit code 1 then.", verify,
                   "Examples:\n  tandem checkpoint verify out");
  add_weights_diff(*checkpoint, commands);
  add_convert(*checkpoint, commands);
  add_merge(*checkpoint, commands);
}

}  // namespace tandem_tool
