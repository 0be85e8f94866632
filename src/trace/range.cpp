#include "tandem/trace/range.h"

#include <string>
#include <string_view>
#include <utility>

#include "trace/events.h"
#include "trace/nvtx.h"

namespace tandem::trace {
namespace {

struct Thread {
  int rank = -1;
  std::int64_t step = 1;
  Recorder* recorder = nullptr;
  Steps capture;
};

thread_local Thread this_thread;

// As LibTorch's profiler shows it, which has no place for numbers but the name.
std::string full_name(Event event, const Detail& detail) {
  std::string name = properties_of(event).name;
  if (event == Event::micro_batch) return name + " of step " + std::to_string(this_thread.step);
  if (detail.bucket >= 0) name += " bucket " + std::to_string(detail.bucket);
  if (detail.bytes >= 0) name += ", " + std::to_string(detail.bytes) + " bytes";
  return name;
}

}  // namespace

Kind kind_of(Event event) noexcept { return properties_of(event).kind; }

Recorder::Recorder() { this_thread.recorder = this; }
Recorder::~Recorder() { this_thread.recorder = nullptr; }

Range::Range(Event event, Detail detail) : nvtx_(nvtx::is_attached()), recorder_(this_thread.recorder) {
  if (nvtx_)
    nvtx::push(event,
               {.rank = this_thread.rank, .step = this_thread.step, .bucket = detail.bucket, .bytes = detail.bytes});
  if (auto callbacks = at::getStepCallbacksUnlessEmpty(at::RecordScope::USER_SCOPE)) {
    name_ = full_name(event, detail);
    torch_.emplace(std::move(*callbacks)).before(std::string_view(name_));
  }
  if (recorder_) begin_recording(event);
}

Range::~Range() {
  if (recorder_ && recorder_ == this_thread.recorder) end_recording();
  torch_.reset();
  if (nvtx_) nvtx::pop();
}

void Range::begin_recording(Event event) {
  kind_ = kind_of(event);
  outer_ = std::exchange(recorder_->innermost_, this);
  begin_ = std::chrono::steady_clock::now();
}

void Range::end_recording() {
  const std::chrono::nanoseconds whole = std::chrono::steady_clock::now() - begin_;
  recorder_->times_[static_cast<std::size_t>(kind_)] += whole - inside_;
  recorder_->innermost_ = outer_;
  if (outer_) outer_->inside_ += whole;
}

void name_thread(int rank, Steps capture) {
  this_thread.rank = rank;
  this_thread.step = 1;
  this_thread.capture = capture;
  if (!nvtx::is_attached()) return;
  nvtx::name_thread(rank);
  if (rank == 0) nvtx::step_begins(1, capture);
}

void next_step() noexcept {
  this_thread.step += 1;
  if (this_thread.rank == 0 && nvtx::is_attached()) nvtx::step_begins(this_thread.step, this_thread.capture);
}

}  // namespace tandem::trace
