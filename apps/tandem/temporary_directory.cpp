#include "temporary_directory.h"

#include <cstdlib>
#include <mutex>
#include <utility>

#include "common/interrupt.h"
#include "io/output_file.h"
#include "tandem/core/error.h"

namespace tandem_tool {
namespace {

std::mutex mutex;
std::string there;  // guarded by it; empty: none

}  // namespace

TemporaryDirectory::TemporaryDirectory(const std::filesystem::path& parent)
    : path_((parent / "tandem-XXXXXX").string()) {
  tandem::io::check_renames_in(parent.string(), parent.string());
  apps::before_end_by_signal(remove_any);
  const std::lock_guard lock(mutex);
  if (!mkdtemp(path_.data())) throw tandem::Error("'" + parent.string() + "': no directory can be made there");
  there = path_;
}

TemporaryDirectory::~TemporaryDirectory() { remove_any(); }

void TemporaryDirectory::remove_any() {
  const std::lock_guard lock(mutex);
  const std::string path = std::exchange(there, {});
  constexpr int kTries = 20;  // another thread may make a file between two looks
  std::error_code error;
  for (int tries = 0; tries < kTries && !path.empty(); ++tries)
    if (std::filesystem::remove_all(path, error); !error) return;
}

}  // namespace tandem_tool
