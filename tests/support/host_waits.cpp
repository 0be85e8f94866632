#include "support/host_waits.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <execinfo.h>

#include <compare>
#include <cstdlib>
#include <mutex>
#include <utility>
#include <vector>

namespace tandem::test::fake {
namespace {

struct Place {
  const char *kind, *of;
  std::vector<void*> called;  // return addresses, the innermost first
  auto operator<=>(const Place&) const = default;
};

struct Waits {
  std::mutex mutex;
  std::map<Place, int> counts;
};

Waits& waits() {
  static Waits& all = *new Waits;
  return all;
}

// Empty where the program does not say.
std::string function_at(void* address) {
  Dl_info info{};
  if (dladdr(address, &info) == 0 || !info.dli_sname) return {};
  int status = 0;
  char* const text = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status);
  std::string name = status == 0 ? text : info.dli_sname;
  std::free(text);
  return name.substr(0, name.find('('));
}

bool is_ours(const std::string& name) {
  const bool has_part = name.find("tandem::") != std::string::npos || name.find("train::") != std::string::npos;
  return has_part && name.find("tandem::test::") == std::string::npos && !name.starts_with("std::");
}

// The innermost functions of Tandem's and of the program's.
std::string in_words(const Place& place) {
  constexpr int kMost = 4;
  std::string text = place.kind + (*place.of ? " of " + std::string(place.of) : std::string());
  int shown = 0;
  for (void* const address : place.called)
    if (const std::string name = function_at(address); shown < kMost && is_ours(name))
      text += (shown++ == 0 ? " in " : ", called by ") + name;
  return text;
}

}  // namespace

void note_wait(const char* kind, const char* of) {
  constexpr int kDepth = 64;
  std::vector<void*> frames(kDepth);
  frames.resize(static_cast<std::size_t>(backtrace(frames.data(), kDepth)));
  const std::lock_guard lock(waits().mutex);
  waits().counts[{kind, of, std::move(frames)}] += 1;
}

std::map<std::string, int> waits_by_place() {
  const std::lock_guard lock(waits().mutex);
  std::map<std::string, int> all;
  for (const auto& [place, count] : waits().counts) all[in_words(place)] += count;
  return all;
}

void forget_waits() {
  const std::lock_guard lock(waits().mutex);
  waits().counts.clear();
}

}  // namespace tandem::test::fake
