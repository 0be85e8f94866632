// Where the header of NVTX is missing.
#include "trace/nvtx.h"

namespace tandem::trace::nvtx {

bool is_attached() noexcept { return false; }
void push(Event, const Payload&) {}
void pop() {}
void name_thread(int) {}
void step_begins(std::int64_t, Steps) {}

}  // namespace tandem::trace::nvtx
