#include "checkpoint/state_file.h"

#include <charconv>
#include <cstring>
#include <utility>

#include <ATen/Functions.h>
#include <c10/util/StringUtil.h>
#include <nlohmann/json.hpp>

#include "io/json_text.h"
#include "io/read_file.h"
#include "tandem/core/error.h"

namespace tandem {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "tandem state";
constexpr int kVersion = 1;

std::string hex(const std::string& bytes) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  text.reserve(2 * bytes.size());
  for (const unsigned char byte : bytes) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

// Reads fields of one object, and says of which file and object they are when they are not there.
class Fields {
 public:
  Fields(const nlohmann::json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object.is_object()) fail("is no object");
  }

  [[noreturn]] void fail(const std::string& problem) const { throw CheckpointError(where_ + " " + problem); }

  const nlohmann::json& any(const char* name) const {
    const auto found = object_.find(name);
    if (found == object_.end()) fail(std::string("has no ") + name);
    return *found;
  }

  std::int64_t count(const char* name) const {
    const auto& value = any(name);
    if (!value.is_number_integer() || value.get<std::int64_t>() < -1) fail(std::string(name) + " is no count");
    return value.get<std::int64_t>();
  }

  std::uint64_t number(const char* name) const {
    const auto& value = any(name);
    if (!value.is_number_unsigned()) fail(std::string(name) + " is no number");
    return value.get<std::uint64_t>();
  }

  bool has(const char* name) const { return object_.contains(name); }

  Fields object(const char* name) const { return Fields(any(name), where_ + " " + name); }

  bool flag(const char* name) const {
    if (!any(name).is_boolean()) fail(std::string(name) + " is neither true nor false");
    return any(name).get<bool>();
  }

  std::string text(const char* name) const {
    if (!any(name).is_string()) fail(std::string(name) + " is no text");
    return any(name).get<std::string>();
  }

  std::string bytes(const char* name) const {
    const std::string digits = text(name);
    std::string bytes(digits.size() / 2, '\0');
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      unsigned char byte = 0;
      const char* const at = digits.data() + 2 * i;
      if (std::from_chars(at, at + 2, byte, 16).ptr != at + 2) fail(std::string(name) + " is not hexadecimal");
      bytes[i] = static_cast<char>(byte);
    }
    return bytes;
  }

  // `take(fields)` for each object of a list.
  template <class Take>
  auto list(const char* name, const Take& take) const {
    if (!any(name).is_array()) fail(std::string(name) + " is no list");
    std::vector<decltype(take(*this))> all;
    for (const auto& one : any(name)) all.push_back(take(Fields(one, where_ + " " + name)));
    return all;
  }

 private:
  const nlohmann::json& object_;
  const std::string where_;
};

Json to_json(const GeneratorStates& states) { return {{"cpu", hex(states.cpu)}, {"cuda", hex(states.cuda)}}; }

GeneratorStates generator_states(const Fields& fields) { return {fields.bytes("cpu"), fields.bytes("cuda")}; }

Json to_json(const data::SamplerState& sampler) {
  Json json{{"seed", sampler.seed}, {"order", sampler.order}, {"running", sampler.running}};
  json["drawn"] = Json::array();
  for (const data::DrawnEpochs& run : sampler.drawn)
    json["drawn"].push_back(
        {{"first", run.first}, {"count", run.count}, {"stride", run.stride}, {"exhausted", run.exhausted}});
  return json;
}

Json to_json(const data::LoaderState& loader) {
  const bool apart = has_sampler_file(loader);
  Json json{{"epoch", loader.epoch},
            {"step", loader.step},
            {"global_batch_size", loader.global_batch_size},
            {"generator", hex(loader.generator.defined() && !apart ? bytes_of(loader.generator) : std::string())}};
  if (apart) json["sampler_file"] = true;
  if (loader.sampler) json["sampler"] = to_json(*loader.sampler);
  return json;
}

data::DrawnEpochs drawn_epochs(const Fields& fields) {
  data::DrawnEpochs run{.first = fields.count("first"),
                        .count = fields.count("count"),
                        .stride = fields.count("stride"),
                        .exhausted = fields.flag("exhausted")};
  constexpr std::int64_t kMost = std::int64_t{1} << 40;  // so that no sum of them is too large
  if (run.first < 0 || run.first > kMost || run.count < 1 || run.count > kMost || run.stride < 0 || run.stride > 1)
    fields.fail("are no epochs");
  return run;
}

data::SamplerState sampler_state(const Fields& fields) {
  return {.seed = fields.number("seed"),
          .drawn = fields.list("drawn", drawn_epochs),
          .order = fields.number("order"),
          .running = fields.flag("running")};
}

data::LoaderState loader_state(const Fields& fields) {
  const std::string generator = fields.bytes("generator");
  data::LoaderState state{.epoch = fields.count("epoch"),
                          .step = fields.count("step"),
                          .global_batch_size = fields.count("global_batch_size"),
                          .generator = generator.empty() ? at::Tensor() : generator_state_of(generator)};
  // Not in states of versions up to 0.1, which did not know how a sampler of the program's own came to its order.
  if (fields.has("sampler")) state.sampler = sampler_state(fields.object("sampler"));
  if (state.sampler && state.sampler->drawn.empty() && state.sampler->running) fields.fail("runs in no epoch");
  return state;
}

}  // namespace

bool has_sampler_file(const data::LoaderState& loader) {
  constexpr std::size_t kMostBytes = 64 << 10;
  const at::Tensor& state = loader.generator;
  return state.defined() && (state.scalar_type() != at::kByte || state.dim() != 1 || state.nbytes() > kMostBytes);
}

std::string numbered(const std::string& kind, std::size_t index) {
  return index == 0 ? kind : c10::str(kind, "_", index);
}

std::string bytes_of(const at::Tensor& generator_state) {
  const at::Tensor bytes = generator_state.cpu().contiguous();
  return {static_cast<const char*>(bytes.const_data_ptr()), static_cast<std::size_t>(bytes.nbytes())};
}

at::Tensor generator_state_of(const std::string& bytes) {
  at::Tensor state = at::empty(static_cast<std::int64_t>(bytes.size()), at::kByte);
  std::memcpy(state.mutable_data_ptr(), bytes.data(), bytes.size());
  return state;
}

std::string to_text(const StateFile& state, const std::string& shown) {
  Json json{{"format", kFormat},
            {"version", kVersion},
            {"models", state.models},
            {"schedulers", state.scheduler_steps.size()},
            {"objects", state.objects},
            {"scaler", state.scaler},
            {"micro_batches", state.micro_batches}};
  json["optimizers"] = Json::array();
  for (const OptimizerCounts& one : state.optimizers)
    json["optimizers"].push_back({{"updates", one.updates}, {"last_step_was_skipped", one.last_step_was_skipped}});
  json["scheduler_steps"] = Json::array();
  for (const std::int64_t steps : state.scheduler_steps) json["scheduler_steps"].push_back({{"updates", steps}});
  json["loaders"] = Json::array();
  for (const data::LoaderState& one : state.loaders) json["loaders"].push_back(to_json(one));
  json["generators"] = Json::array();
  for (const GeneratorStates& one : state.generators) json["generators"].push_back(to_json(one));
  if (state.exact)
    json["exact"] = {{"threads_per_rank", state.exact->threads_per_rank}, {"outside", to_json(state.exact->outside)}};
  json["hook_files"] = Json::array();
  for (const std::string& name : state.hook_files) json["hook_files"].push_back({{"name", name}});
  return io::exact_json(json, shown, 1) + "\n";
}

StateFile parse_state_file(const std::string& text, const std::string& shown) {
  const nlohmann::json json = io::parse_json(text);
  const Fields fields(json, shown + ":");
  if (fields.text("format") != kFormat) fields.fail("is no state of Tandem's");
  if (fields.count("version") != kVersion)
    fields.fail("is of version " + std::to_string(fields.count("version")) + ", and this Tandem reads version " +
                std::to_string(kVersion));
  StateFile state;
  state.models = fields.count("models");
  state.objects = fields.count("objects");
  state.scaler = fields.flag("scaler");
  state.micro_batches = fields.count("micro_batches");
  state.optimizers = fields.list("optimizers", [](const Fields& one) {
    return OptimizerCounts{one.count("updates"), one.flag("last_step_was_skipped")};
  });
  state.scheduler_steps = fields.list("scheduler_steps", [](const Fields& one) { return one.count("updates"); });
  state.loaders = fields.list("loaders", loader_state);
  const auto in_file = fields.list("loaders", [](const Fields& one) {
    return one.has("sampler_file") && one.flag("sampler_file") ? std::size_t{1} : std::size_t{0};
  });
  for (std::size_t i = 0; i < in_file.size(); ++i)
    if (in_file[i] > 0) state.sampler_files.push_back(i);
  state.generators = fields.list("generators", generator_states);
  if (fields.has("exact")) {
    const Fields exact = fields.object("exact");
    state.exact = {exact.count("threads_per_rank"), generator_states(exact.object("outside"))};
  }
  state.hook_files = fields.list("hook_files", [](const Fields& one) { return one.text("name"); });
  return state;
}

}  // namespace tandem
