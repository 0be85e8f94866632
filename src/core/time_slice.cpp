#include "core/time_slice.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <optional>

namespace tandem {
namespace {

constexpr std::uint64_t kShortest = 100'000;  // ns, the least that Linux gives

// The kernel's struct sched_attr in its first version: <linux/sched/types.h> cannot be included beside <sched.h>.
struct SchedulingAttributes {
  std::uint32_t size = sizeof(SchedulingAttributes);
  std::uint32_t policy = 0;
  std::uint64_t flags = 0;
  std::int32_t nice = 0;
  std::uint32_t priority = 0;
  std::uint64_t runtime = 0;  // of SCHED_OTHER, the slice
  std::uint64_t deadline = 0;
  std::uint64_t period = 0;
};

std::optional<SchedulingAttributes> attributes_of_this_thread() noexcept {
  SchedulingAttributes attributes;
  if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0) return std::nullopt;
  return attributes;
}

}  // namespace

void ask_for_short_slices() noexcept {
  auto attributes = attributes_of_this_thread();
  if (!attributes || attributes->policy != SCHED_OTHER) return;
  attributes->runtime = kShortest;
  syscall(SYS_sched_setattr, 0, &*attributes, 0);
}

std::uint64_t time_slice() noexcept {
  const auto attributes = attributes_of_this_thread();
  return attributes && attributes->policy == SCHED_OTHER ? attributes->runtime : 0;
}

}  // namespace tandem
