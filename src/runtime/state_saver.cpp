#include "runtime/state_saver.h"

#include <chrono>
#include <filesystem>
#include <system_error>
#include <utility>

#include "tandem/core/error.h"
#include "tandem/io/checkpoint_series.h"

namespace tandem {

namespace fs = std::filesystem;

bool StateSaver::busy() const {
  return writing_.valid() && writing_.wait_for(std::chrono::seconds(0)) != std::future_status::ready;
}

void StateSaver::wait() {
  if (!writing_.valid()) return;
  try {
    writing_.get();
  } catch (const std::exception& error) {
    throw CheckpointError(std::string("a save in the background failed: ") + error.what());
  }
}

void StateSaver::write(const Job& job) {
  const fs::path parent = fs::path(job.directory).parent_path();
  std::error_code error;
  if (!parent.empty()) fs::create_directories(parent, error);
  if (error) throw CheckpointError(parent.string() + ": cannot be made: " + error.message());
  io::CheckpointWriter writer(job.directory);
  writer.add(job.files);
  writer.commit(job.info);
  if (job.in_series) io::finish_checkpoint(parent.string(), job.directory, job.total_limit);
}

void StateSaver::start(Job job) {
  writing_ = std::async(std::launch::async, [job = std::move(job)] {
    if (!job.written) return write(job);
    std::exception_ptr error;
    try {
      write(job);
    } catch (...) {
      error = std::current_exception();
    }
    job.written(job.directory, error);
  });
}

}  // namespace tandem
