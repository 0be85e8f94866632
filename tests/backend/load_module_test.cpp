// What is said where no GPU is usable: with files that stand for the driver and the module.
#include "backend/cuda/load_module.h"

#include <dlfcn.h>

#include <fstream>

#include "backend/cuda/gpu_backend.h"
#include "support/catch.h"
#include "support/temp_dir.h"
#include "tandem/core/error.h"

using namespace tandem;
using namespace tandem::test;
using Catch::Matchers::ContainsSubstring;

namespace {

const std::string kFolder = TANDEM_FAKE_LIBRARIES;

std::string file(const std::string& name) { return kFolder + "/lib" + name + ".so"; }

std::string refusal(const std::string& driver, const std::vector<std::string>& modules) {
  try {
    cuda::make_gpu_backend(cuda::load_module({.driver = driver, .modules = modules}));
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("where no GPU is usable, one sentence says why") {
  const TempDir dir;
  std::ofstream(dir / "text") << "no library";
  const std::string good = file("fake_driver"), module = file("fake_module_empty");
  struct Case {
    std::string driver, module;
    std::vector<std::string> words;
  };
  for (const Case& c : std::vector<Case>{
           {"/nowhere/libcuda.so.1", module, {"no NVIDIA driver is loaded on this machine"}},
           {file("fake_module_empty"), module, {"is not NVIDIA's driver"}},
           {file("fake_driver_old"), module, {"knows CUDA 12.4, but Tandem needs 13.0", "580"}},
           {file("fake_driver_broken"), module, {"does not start (error 999 of cuInit)", "nvidia-smi"}},
           {file("fake_driver_hidden"), module, {"shows no GPU to this process", "CUDA_VISIBLE_DEVICES"}},
           {good, "/nowhere/module.so", {"has no GPU module (looked for /nowhere/module.so)", "TANDEM_CUDA=ON"}},
           {good, dir / "text", {"cannot be loaded: " + (dir / "text"), "LibTorch has to be the one with CUDA"}},
           {good, good, {"is no module of Tandem's"}},
           {good, file("fake_module_other"), {"is of another version of Tandem"}},
           {good, file("fake_module_failing"), {"CUDA does not start: forward compatibility was attempted"}},
           {good, module, {"CUDA shows none to this process"}}}) {
    CAPTURE(c.driver, c.module);
    const std::string text = refusal(c.driver, {c.module});
    for (const auto& words : c.words) CHECK_THAT(text, ContainsSubstring(words));
    CHECK_THAT(text, Catch::Matchers::StartsWith("no GPU is usable: ") && ContainsSubstring("se CPU ranks"));
  }
}

TEST_CASE("the first module that exists counts") {
  CHECK_THAT(refusal(file("fake_driver"), {"/nowhere/module.so", file("fake_module_other"), file("fake_module_empty")}),
             ContainsSubstring("another version"));
  const auto usual = cuda::usual_places();
  CHECK(usual.driver == "libcuda.so.1");
  REQUIRE(usual.modules.size() >= 2);
  CHECK_THAT(usual.modules[0], ContainsSubstring("/tests/libtandem_cuda.so"));
  CHECK_THAT(usual.modules[1], ContainsSubstring("/lib/libtandem_cuda.so"));
}

// The module has its own hidden copy of what describes the class, which has to pass for the program's.
TEST_CASE("what a module throws is caught as Tandem's error, however it is loaded") {
  const int scope = GENERATE(RTLD_LOCAL, RTLD_GLOBAL);
  CAPTURE(scope);
  void* const module = dlopen(file("fake_module_failing").c_str(), RTLD_NOW | scope);
  REQUIRE(module);
  CHECK(dlsym(module, "_ZTIN6tandem5ErrorE") == nullptr);
  const auto make = reinterpret_cast<cuda::MakeModule*>(dlsym(module, cuda::kMakeModule));
  REQUIRE(make);
  bool caught = false;
  try {
    make();
  } catch (const Error& error) {
    caught = std::string(error.what()) == "forward compatibility was attempted";
  } catch (const std::exception&) {
  }
  CHECK(caught);
}

#ifdef TANDEM_CUDA_MODULE
TEST_CASE("the module that was built is Tandem's, or says what it misses here") {
  // LibTorch's CUDA libraries would register themselves beside the fake; where there are GPUs, tests/gpu loads it.
  if (::dlopen("libcuda.so.1", RTLD_LAZY)) return;
  const std::string text = refusal(file("fake_driver"), {TANDEM_CUDA_MODULE});
  CAPTURE(text);
  CHECK_THAT(text, !ContainsSubstring("no module of Tandem's") && !ContainsSubstring("another version"));
  // Neither a LibTorch for CPU nor the fake driver gets further.
  CHECK_THAT(text, ContainsSubstring("cannot be loaded") || ContainsSubstring("CUDA does not start"));
}
#endif
