#include "trace/torch_profiler.h"

#include <set>

namespace tandem::trace {

namespace profiler = torch::autograd::profiler;
using torch::profiler::impl::ActivityType;

TorchProfiler::ThreadState TorchProfiler::ThreadState::current() {
  return {c10::ThreadLocalDebugInfo::current(), at::get_record_function_tls_()};
}

void TorchProfiler::ThreadState::make_current() const {
  c10::ThreadLocalDebugInfo::_forceCurrentDebugInfo(info);
  at::set_record_function_tls_(callbacks);
}

void TorchProfiler::start(bool gpu) {
  const ThreadState before = ThreadState::current();
  const torch::profiler::impl::ProfilerConfig config(torch::profiler::impl::ProfilerState::KINETO);
  std::set<ActivityType> activities{ActivityType::CPU};
  if (gpu) activities.insert(ActivityType::CUDA);
  profiler::prepareProfiler(config, activities);
  profiler::enableProfiler(config, activities);
  state_ = ThreadState::current();
  before.make_current();
}

std::unique_ptr<profiler::ProfilerResult> TorchProfiler::stop() {
  // It ends the profiler that it finds in the thread.
  const Inside inside(*this);
  auto result = profiler::disableProfiler();
  state_ = {};
  return result;
}

}  // namespace tandem::trace
