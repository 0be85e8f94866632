#include "checkpoint/state_saver.h"

#include <filesystem>
#include <system_error>
#include <utility>

#include "io/output_file.h"
#include "tandem/core/error.h"

namespace tandem {

namespace fs = std::filesystem;

void StateSaver::wait() {
  settle();
  if (problem_) std::rethrow_exception(std::exchange(problem_, nullptr));
}

void StateSaver::settle() {
  if (!writing_.valid()) return;
  try {
    writing_.get();
  } catch (const std::exception& error) {
    problem_ =
        std::make_exception_ptr(CheckpointError(std::string("a save in the background failed: ") + error.what()));
  }
}

void StateSaver::write(const Job& job) {
  const fs::path parent = fs::path(job.directory).parent_path();
  std::error_code error;
  if (!parent.empty()) fs::create_directories(io::follow_links(parent), error);
  if (error) throw CheckpointError(parent.string() + ": cannot be made: " + error.message());
  io::CheckpointWriter writer(job.directory, job.series ? io::Existing::keep : io::Existing::replace);
  writer.add(job.files);
  writer.commit(job.info);
  if (job.series) job.series->finish(job.directory, job.total_limit);
}

void StateSaver::start(Job job) {
  busy_ = true;
  writing_ = std::async(std::launch::async, [this, job = std::move(job)] {
    std::exception_ptr error;
    try {
      write(job);
    } catch (...) {
      error = std::current_exception();
    }
    busy_ = false;  // who hears of it may ask for the next
    if (job.written)
      job.written(job.directory, error);
    else if (error)
      std::rethrow_exception(error);
  });
}

}  // namespace tandem
