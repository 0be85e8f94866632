#include "convert.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>
#include <vector>

#include <nlohmann/json.hpp>

#include "common/interrupt.h"
#include "io/json_text.h"
#include "io/model_source.h"
#include "io/model_weights.h"
#include "io/output_file.h"
#include "stored_tensors.h"
#include "tandem/core/error.h"
#include "tandem/io/checkpoint_directory.h"
#include "tandem/io/safetensors.h"

namespace tandem_tool {
namespace {

namespace io = tandem::io;
using Entries = std::vector<StoredTensors::Entry>;

bool is_converted(const StoredTensors::Entry& entry, const Conversion& conversion) {
  return conversion.type && entry.tensor.is_floating();
}

std::uint64_t bytes_of(const StoredTensors::Entry& entry, const Conversion& conversion) {
  const std::uint64_t bytes = entry.tensor.bytes();
  if (!is_converted(entry, conversion)) return bytes;
  std::uint64_t elements = 1;
  for (const std::int64_t size : entry.tensor.shape) elements *= static_cast<std::uint64_t>(size);
  return elements * c10::elementSize(*conversion.type);
}

// In their order, each part as large as it may be; as io::save_model.
std::vector<Entries> split(const Entries& entries, const Conversion& conversion) {
  std::vector<Entries> shards(1);
  std::uint64_t bytes = 0;
  for (const auto& entry : entries) {
    const std::uint64_t more = bytes_of(entry, conversion);
    if (!shards.back().empty() && bytes + more > conversion.max_shard_bytes) {
      shards.emplace_back();
      bytes = 0;
    }
    shards.back().push_back(entry);
    bytes += more;
  }
  return shards;
}

// A signal ends what is written, and then nothing of it is left.
void stop_if_asked() {
  if (apps::interrupted()) throw tandem::Cancelled("interrupted");
}

io::WriteBytes until_stopped(const io::WriteBytes& write) {
  static constexpr std::size_t kPart = 4 << 20;
  return [&write](const void* data, std::size_t bytes) {
    for (std::size_t done = 0; done < bytes; done += kPart) {
      stop_if_asked();
      write(static_cast<const char*>(data) + done, std::min(kPart, bytes - done));
    }
  };
}

io::NamedTensors read(const StoredTensors& stored, const Entries& entries, const Conversion& conversion) {
  io::NamedTensors tensors;
  for (const auto& entry : entries) {
    stop_if_asked();
    at::Tensor tensor = stored.read(entry);
    if (is_converted(entry, conversion)) {
      if (tensor.scalar_type() == at::kFloat4_e2m1fn_x2)
        throw tandem::CheckpointError(conversion.from + ": tensor '" + entry.tensor.name +
                                      "' has the type F4, which LibTorch does not convert");
      tensor = tensor.to(*conversion.type);
    }
    tensors.emplace_back(entry.tensor.name, std::move(tensor));
  }
  return tensors;
}

std::map<std::string, std::string> metadata_of(const StoredTensors& stored) {
  auto metadata = stored.metadata();
  metadata.emplace("format", "pt");  // Python's readers ask for it
  return metadata;
}

void write_directory(const StoredTensors& stored, const Conversion& conversion) {
  const auto shards = split(stored.entries(), conversion);
  io::CheckpointWriter writer(conversion.to);
  nlohmann::ordered_json weight_map = nlohmann::ordered_json::object();
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const std::string name = shards.size() == 1 ? io::kSingleModelFile : io::shard_name("model", i + 1, shards.size());
    writer.add({{name, [&](const io::WriteBytes& write) {
                   io::write_safetensors(until_stopped(write), conversion.to + "/" + name,
                                         read(stored, shards[i], conversion), metadata_of(stored));
                 }}});
    for (const auto& entry : shards[i]) {
      weight_map[entry.tensor.name] = name;
      bytes += bytes_of(entry, conversion);
    }
  }
  const nlohmann::ordered_json index{{"metadata", {{"total_size", bytes}}}, {"weight_map", std::move(weight_map)}};
  if (shards.size() > 1)
    writer.add(io::kModelIndex, io::exact_json(index, conversion.to + "/" + io::kModelIndex, 2) + "\n");
  writer.commit({{"kind", "model"}});
}

}  // namespace

void convert(const Conversion& conversion) {
  std::error_code error;
  io::OutputFile file(conversion.to);
  const bool stream = file.is_stream();
  if (!stream && std::filesystem::exists(conversion.to, error))  // a link that leads to nothing is where it leads
    throw tandem::ConfigError("'" + conversion.to + "' is there already; move it away, or choose another name");
  if (conversion.max_shard_bytes == 0) throw tandem::ConfigError("a file of 0 bytes cannot be; use for example 5GB");
  const bool one_file = stream || conversion.to.ends_with(".safetensors");
  if (one_file) file.check();
  const StoredTensors stored(conversion.from);
  if (stored.source()) stored.source()->verify();
  apps::stop_at_signals([&] { return "what is written of '" + conversion.to + "'"; }, false);
  if (!one_file) return write_directory(stored, conversion);
  file.write([&](const io::WriteBytes& write) {
    io::write_safetensors(until_stopped(write), conversion.to, read(stored, stored.entries(), conversion),
                          metadata_of(stored));
  });
}

std::uint64_t parse_bytes(const std::string& text) {
  std::uint64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  const std::map<std::string, std::uint64_t> units{
      {"", 1}, {"KB", 1000}, {"MB", 1'000'000}, {"GB", 1'000'000'000}, {"TB", 1'000'000'000'000}};
  const auto unit = units.find(std::string(rest, end));
  if (error != std::errc() || unit == units.end() || value == 0 || value > (std::uint64_t{1} << 62) / unit->second)
    throw tandem::ConfigError("'" + text + "' is no size of a file; use for example 500MB or 5GB");
  return value * unit->second;
}

}  // namespace tandem_tool
