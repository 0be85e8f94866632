#include "backend/cuda/load_module.h"

#include <dlfcn.h>

#include <algorithm>
#include <filesystem>

#include "backend/cuda/late_hooks.h"
#include "tandem/core/error.h"

namespace tandem::cuda {
namespace {

constexpr const char* kFileName = "libtandem_cuda.so";
constexpr int kOldestCuda = 13000;  // what LibTorch and the module are built with; as cuDriverGetVersion counts

[[noreturn]] void refuse(const std::string& reason) { throw ConfigError("no GPU is usable: " + reason); }

// CUDA libraries do not bear being unloaded.
void* load(const std::string& path) { return dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL | RTLD_NODELETE); }

template <class Function>
Function* function(void* library, const char* name) {
  return reinterpret_cast<Function*>(dlsym(library, name));
}

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// The driver is asked first: without one nothing else need be loaded.
void check_driver(const std::string& path) {
  void* const driver = load(path);
  if (!driver) refuse("no NVIDIA driver is loaded on this machine; use CPU ranks");
  const auto get_version = function<int(int*)>(driver, "cuDriverGetVersion");
  const auto init = function<int(unsigned)>(driver, "cuInit");
  const auto get_count = function<int(int*)>(driver, "cuDeviceGetCount");
  int version = 0, count = 0;
  if (!get_version || !init || !get_count || get_version(&version) != 0)
    refuse("'" + path + "' is not NVIDIA's driver, or one that does not answer; use CPU ranks");
  if (version < kOldestCuda)
    refuse("the NVIDIA driver knows CUDA " + version_text(version) + ", but Tandem needs " + version_text(kOldestCuda) +
           "; update it to 580 or newer, or use CPU ranks");
  constexpr int kNoDevice = 100;  // CUDA_ERROR_NO_DEVICE
  if (const int result = init(0); result != 0 && result != kNoDevice)
    refuse("the NVIDIA driver does not start (error " + std::to_string(result) +
           " of cuInit); does nvidia-smi work? Use CPU ranks");
  if (get_count(&count) != 0 || count == 0)
    refuse("the NVIDIA driver shows no GPU to this process; is CUDA_VISIBLE_DEVICES set? Use CPU ranks");
}

std::string find_module(const std::vector<std::string>& paths) {
  const auto exists = [](const std::string& path) {
    std::error_code ignored;
    return std::filesystem::exists(path, ignored);
  };
  const auto found = std::find_if(paths.begin(), paths.end(), exists);
  if (found != paths.end()) return *found;
  std::string looked;
  for (const auto& path : paths) looked += (looked.empty() ? "" : ", ") + path;
  refuse("this build of Tandem has no GPU module (looked for " + looked +
         "); build it with TANDEM_CUDA=ON, or use CPU ranks");
}

}  // namespace

Places usual_places() {
  Places places;
  std::error_code ignored;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", ignored).parent_path();
  if (!program.empty())
    places.modules = {(program / kFileName).string(), (program.parent_path() / "lib" / kFileName).string()};
  // Beside the library that holds Tandem: its host may be an interpreter.
  Dl_info here = {};
  if (dladdr(reinterpret_cast<void*>(&usual_places), &here) != 0 && here.dli_fname)
    places.modules.push_back((std::filesystem::path(here.dli_fname).parent_path() / kFileName).string());
#ifdef TANDEM_CUDA_MODULE
  places.modules.push_back(TANDEM_CUDA_MODULE);
#endif
  return places;
}

std::shared_ptr<Module> load_module(const Places& places) {
  check_driver(places.driver);
  const std::string path = find_module(places.modules);
  void* const library = load(path);
  if (!library)
    refuse("the GPU module cannot be loaded: " + std::string(dlerror()) +
           ". LibTorch has to be the one with CUDA's libraries, which the set-up installs where it finds a driver; or "
           "use CPU ranks");
  const auto* const version = static_cast<const int*>(dlsym(library, kVersionSymbol));
  const auto make = function<MakeModule>(library, kMakeModule);
  if (!version || !make || *version != kModuleVersion)
    refuse("the GPU module '" + path + "' is " + (version ? "of another version of Tandem" : "no module of Tandem's") +
           "; build both together, or use CPU ranks");
  connect_cuda_hooks();
  try {
    return make();
  } catch (const std::exception& error) {
    refuse(std::string("CUDA does not start: ") + error.what() + "; use CPU ranks");
  }
}

}  // namespace tandem::cuda
