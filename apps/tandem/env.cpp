// tandem env: what Tandem sees of this machine, and what it would do and why. For people and for reports of bugs, so it
// tells nothing about who uses it: no names of users and hosts, no path of a home.
#include "env.h"

#include <dlfcn.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <regex>
#include <set>
#include <string>

#include <nlohmann/json.hpp>

#include "backend/cores.h"
#include "backend/cuda/load_module.h"
#include "command.h"
#include "common/machine.h"
#include "io/json_text.h"
#include "tandem/core/error.h"
#include "tandem/runtime/launch_config.h"
#include "tandem/version.h"

namespace tandem_tool {
namespace {

using Json = nlohmann::ordered_json;

struct EnvOptions {
  std::optional<int> gpus, cpu;
  bool json = false;
};

double gigabytes(std::uint64_t bytes) { return static_cast<double>(bytes / 10'000'000) / 100; }

std::string without_homes(const std::string& text) {
  const std::regex homes("(/home/[^/\\s]+|/Users/[^/\\s]+|/root(?=[/\\s]|$))");
  std::string shown = std::regex_replace(text, homes, "~");
  const char* const home = std::getenv("HOME");
  const std::string mine = home ? home : "";
  if (mine.size() > 1)
    for (std::size_t at; (at = shown.find(mine)) != std::string::npos;) shown.replace(at, mine.size(), "~");
  return shown;
}

Json describe_cores(const apps::Machine& machine) {
  Json json{{"model", machine.cpu_model},
            {"cores this process may use", machine.cores.size()},
            {"physical cores of these", machine.physical_cores},
            {"NUMA nodes", machine.numa}};
  json["limit of the control group, cores"] = machine.cpu_limit ? Json(*machine.cpu_limit) : Json("none");
  return json;
}

Json describe_memory(const apps::Machine& machine) {
  Json json{{"GB", gigabytes(machine.memory)}, {"available GB", gigabytes(machine.memory_available)}};
  json["limit of the control group, GB"] = machine.memory_limit ? Json(gigabytes(*machine.memory_limit)) : Json("none");
  return json;
}

// "13.0" for 13000; empty where the library that has the function is not loaded.
std::string cuda_version(const char* function_name) {
  const auto get = reinterpret_cast<int (*)(int*)>(dlsym(RTLD_DEFAULT, function_name));
  int version = 0;
  if (!get || get(&version) != 0) return "unknown";
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string driver_version() {
  std::ifstream file("/proc/driver/nvidia/version");
  std::string line;
  std::getline(file, line);
  std::smatch found;  // the rest says who built it
  return std::regex_search(line, found, std::regex("\\b\\d{3}\\.\\d+(\\.\\d+)?\\b")) ? found.str() : "none";
}

Json describe_devices(tandem::cuda::Module& module) {
  Json devices = Json::array();
  for (const auto& facts : module.devices())
    devices.push_back({{"name", facts.name},
                       {"compute capability", std::to_string(facts.major) + "." + std::to_string(facts.minor)},
                       {"memory GB", gigabytes(facts.memory)},
                       {"cores nearby", tandem::cores_of_pci_device(facts.pci_bus_id).size()}});
  return devices;
}

// By GPU: the others whose memory it reaches.
Json describe_links(tandem::cuda::Module& module, int count) {
  Json links = Json::array();
  for (int device = 0; device < count; ++device) {
    Json reached = Json::array();
    for (int peer = 0; peer < count; ++peer)
      if (peer != device && module.enable_peer_access(device, peer)) reached.push_back(peer);
    links.push_back(reached);
  }
  return links;
}

std::string nccl_version(int version) {
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

Json describe_gpus() {
  Json json{{"driver", driver_version()}};
  try {
    const auto module = tandem::cuda::load_module(tandem::cuda::usual_places());
    json["usable"] = true;
    json["CUDA of the driver"] = cuda_version("cuDriverGetVersion");
    json["CUDA of the programs"] = cuda_version("cudaRuntimeGetVersion");
    json["NCCL"] = nccl_version(module->nccl().version());
    json["devices"] = describe_devices(*module);
    json["reach each other's memory"] = describe_links(*module, static_cast<int>(json["devices"].size()));
  } catch (const tandem::Error& error) {
    json["usable"] = false;
    json["why not"] = without_homes(error.what());
  }
  return json;
}

std::string reason_for_ranks(const EnvOptions& options, const tandem::AcceleratorState& state) {
  if (options.gpus || options.cpu) return "asked for";
  if (!state.devices.front().is_cpu()) return "one for each usable GPU";
  return "no GPU is usable; one for each core that may be used at a time, at most 8";
}

std::string describe_transport(const tandem::AcceleratorState& state) {
  if (state.world_size() == 1) return "none: there is one rank";
  if (state.devices.front().is_cpu()) return "the memory that all ranks share";
  const std::set<int> indices = [&] {
    std::set<int> all;
    for (const auto& device : state.devices) all.insert(device.index());
    return all;
  }();
  if (indices.size() < state.devices.size()) return "the ranks' GPU memory: some share a GPU";
  return "NCCL, and small tensors through the GPUs' memory where they reach it";
}

// Whether train would be one of several processes.
std::string describe_processes() {
  try {
    const auto nodes = tandem::nodes_from_environment();
    if (!nodes || nodes->nodes == 1) return "one: no launcher's variables say that there are more";
    return "this is node " + std::to_string(nodes->node) + " of " + std::to_string(nodes->nodes) + ", started by " +
           nodes->started_by;
  } catch (const tandem::ConfigError& error) {
    return std::string("an error: ") + error.what();
  }
}

Json describe_plan(const EnvOptions& options) {
  const auto state = tandem::examine({.gpus = options.gpus, .cpu = options.cpu});
  const bool cpu = state.devices.front().is_cpu();
  return {{"processes", describe_processes()},
          {"ranks", state.world_size()},
          {"on", state.backend_name},
          {"why as many", reason_for_ranks(options, state)},
          {"threads per rank", state.threads_per_rank},
          {"why as many threads", std::to_string(state.cores) + " cores at a time divided by the ranks, at least 1"},
          {"data between ranks goes through", describe_transport(state)},
          {"sharding", cpu ? "updates and optimizer state are divided; weights and reduced gradients are there once, "
                             "where that is exact"
                           : "none: each GPU has everything"}};
}

std::vector<std::string> advice(const apps::Machine& machine, const EnvOptions& options) {
  std::vector<std::string> sentences;
  const auto state = tandem::examine({.gpus = options.gpus, .cpu = options.cpu});
  if (machine.cpu_limit && state.world_size() > state.cores)
    sentences.push_back("the control group allows less time than there are ranks; fewer ranks will wait less");
  if (machine.physical_cores < static_cast<int>(machine.cores.size()))
    sentences.push_back("some cores are hyper-threads of others; as many threads as physical cores are often faster");
  return sentences;
}

Json describe_machine(const EnvOptions& options) {
  const apps::Machine machine = apps::describe_machine();
  utsname system{};
  uname(&system);
  return {{"Tandem", TANDEM_VERSION},
          {"LibTorch", tandem::examine({.cpu = 1}).libtorch_version},
          {"system", std::string(system.sysname) + " " + system.release + " " + system.machine},
          {"CPU", describe_cores(machine)},
          {"memory", describe_memory(machine)},
          {"GPU", describe_gpus()},
          {"what Tandem would do", describe_plan(options)},
          {"advice", advice(machine, options)}};
}

std::string in_words(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_boolean()) return value.get<bool>() ? "yes" : "no";
  if (!value.is_structured()) return tandem::io::shown_json(value);
  std::string text;
  for (const auto& [key, part] : value.items()) {
    if (!text.empty()) text += ", ";
    text += (value.is_object() && !part.is_string() ? key + " " : "") + in_words(part);
  }
  return text.empty() ? "none" : text;
}

void print(const Json& object, const std::string& indent) {
  for (const auto& [key, value] : object.items()) {
    const bool list = value.is_array() && !value.empty() && value[0].is_structured();
    if (value.is_object() || list) {
      std::printf("%s%s\n", indent.c_str(), key.c_str());
      if (list)
        for (std::size_t i = 0; i < value.size(); ++i)
          std::printf("%s  %zu: %s\n", indent.c_str(), i, in_words(value[i]).c_str());
      else
        print(value, indent + "  ");
    } else {
      std::printf("%s%s: %s\n", indent.c_str(), key.c_str(), in_words(value).c_str());
    }
  }
}

int show_environment(const EnvOptions& options) {
  const Json json = describe_machine(options);
  if (options.json)
    std::printf("%s\n", tandem::io::shown_json(json, 1).c_str());
  else
    print(json, "");
  return apps::kDone;
}

std::string replaced(std::string text, const std::string& what, const std::string& by) {
  constexpr std::size_t kShortest = 3;  // a shorter name is a part of any word
  if (what.size() >= kShortest)
    for (std::size_t at = 0; (at = text.find(what, at)) != std::string::npos; at += by.size())
      text.replace(at, what.size(), by);
  return text;
}

}  // namespace

Json describe_environment() { return describe_machine({}); }

std::string without_names(const std::string& text) {
  std::string shown = std::regex_replace(text, std::regex("(/[^/\\s'\":;,()]+){2,}/?"), "(path)");
  std::array<char, 256> host{};
  if (gethostname(host.data(), host.size() - 1) == 0) shown = replaced(shown, host.data(), "(host)");
  for (const char* const variable : {"USER", "LOGNAME"})
    if (const char* const user = std::getenv(variable); user && user != std::string("root"))
      shown = replaced(shown, user, "(user)");
  return shown;
}

void add_env(CLI::App& tandem, Commands& commands) {
  const auto options = std::make_shared<EnvOptions>();
  auto* env = tandem.add_subcommand("env", "Shows what Tandem sees of this machine, and what it would do and why.");
  auto* gpus = env->add_option("--gpus", options->gpus, "what it would do with N GPUs")->check(CLI::Range(1, 1024));
  env->add_option("--cpu", options->cpu, "what it would do with N ranks on the CPU")
      ->check(CLI::Range(1, 1024))
      ->excludes(gpus);
  env->add_flag("--json", options->json, "print JSON, for a report of a bug; it names no user, host or home");
  env->footer("Examples:\n  tandem env\n  tandem env --json\n  tandem env --cpu 4");
  commands.push_back({env, [options] { return show_environment(*options); }});
}

}  // namespace tandem_tool
