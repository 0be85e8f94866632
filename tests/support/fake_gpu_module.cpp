// The fake CUDA as the file that Tandem loads: with it and a fake driver, programs find eight GPUs.
#include <cstdlib>
#include <fstream>
#include <map>
#include <string>

#include "comm/call_observer.h"
#include "comm/call_record.h"
#include "support/fake_module.h"
#include "support/host_waits.h"

namespace {

void write(const char* variable, const std::map<std::string, int>& counts) {
  std::ofstream file(std::getenv(variable));
  for (const auto& [name, count] : counts) file << count << ' ' << name << '\n';
}

constexpr const char* kWaits = "TANDEM_FAKE_WAITS";
constexpr const char* kLaunches = "TANDEM_FAKE_LAUNCHES";

void write_waits() { write(kWaits, tandem::test::fake::host_waits()); }
void write_launches() { write(kLaunches, tandem::test::fake::launches()); }
void note_meeting(const tandem::comm::CallRecord&) { tandem::test::fake::note_wait("meeting of hosts"); }

}  // namespace

extern "C" {
extern const int tandem_cuda_module_version;
const int tandem_cuda_module_version = tandem::cuda::kModuleVersion;

// TANDEM_FAKE_GOOD_REDUCTIONS=N: after N of them, what is written to the last rank's memory does not arrive; with
// TANDEM_FAKE_HANGS, the next one never ends. TANDEM_FAKE_LARGEST_TENSOR=BYTES: a larger one is an out of memory; with
// TANDEM_FAKE_SMALL_DEVICE=N only on that device. When the program ends, it is written to a file: TANDEM_FAKE_WAITS=FILE,
// how often hosts have waited, for devices and for each other, and where; TANDEM_FAKE_LAUNCHES=FILE, what they have had
// devices do.
std::unique_ptr<tandem::cuda::Module> tandem_make_cuda_module() {
  auto module = std::make_unique<tandem::test::FakeModule>();
  if (const char* const good = std::getenv("TANDEM_FAKE_GOOD_REDUCTIONS")) module->good_reductions = std::atoll(good);
  module->hangs = std::getenv("TANDEM_FAKE_HANGS") != nullptr;
  if (const char* const bytes = std::getenv("TANDEM_FAKE_LARGEST_TENSOR")) {
    const char* const device = std::getenv("TANDEM_FAKE_SMALL_DEVICE");
    tandem::test::fake::set_largest_tensor(static_cast<std::size_t>(std::atoll(bytes)),
                                           device ? std::atoi(device) : -1);
  }
  if (std::getenv(kLaunches)) std::atexit(write_launches);
  if (std::getenv(kWaits)) {
    tandem::comm::call_observer = note_meeting;
    std::atexit(write_waits);
  }
  return module;
}
}
