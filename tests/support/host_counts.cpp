#include "support/host_counts.h"

#include <dlfcn.h>
#include <execinfo.h>

#include <array>
#include <atomic>
#include <compare>
#include <cstdint>
#include <cstdio>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

namespace tandem::test::fake {
namespace {

struct Place {
  const char *kind, *of;
  std::vector<std::uintptr_t> called;  // where in this program, the innermost first
  auto operator<=>(const Place&) const = default;
};

struct Counts {
  std::mutex mutex;
  std::map<Place, int> waits;
  std::map<std::string, int> launches;
};

std::atomic<bool> counting{false};

Counts& counts() {
  static Counts& all = *new Counts;
  return all;
}

void* base_of(void* address) {
  Dl_info info{};
  return dladdr(address, &info) == 0 ? nullptr : info.dli_fbase;
}

// Of this program, without the libraries; the call is before the return address.
std::vector<std::uintptr_t> callers() {
  static void* const base = base_of(reinterpret_cast<void*>(&note_wait));
  std::array<void*, 96> frames{};
  const int depth = backtrace(frames.data(), static_cast<int>(frames.size()));
  std::vector<std::uintptr_t> called;
  for (int i = 0; i < depth; ++i)
    if (base_of(frames[static_cast<std::size_t>(i)]) == base)
      called.push_back(reinterpret_cast<std::uintptr_t>(frames[static_cast<std::size_t>(i)]) -
                       reinterpret_cast<std::uintptr_t>(base) - 1);
  return called;
}

// "train::Records::pause" of "train::(anonymous namespace)::Records::pause(int)".
std::string short_name(std::string name) {
  constexpr const char* kAnonymous = "(anonymous namespace)::";
  for (std::size_t at; (at = name.find(kAnonymous)) != std::string::npos;)
    name.erase(at, std::char_traits<char>::length(kAnonymous));
  return name.substr(0, name.find_first_of("(<{\n"));
}

// The functions at these places; empty where there are no binutils.
std::map<std::uintptr_t, std::string> functions_at(const std::set<std::uintptr_t>& places) {
  std::string command = "addr2line -fC -e \"$(readlink /proc/$PPID/exe)\"";
  for (const std::uintptr_t place : places) {
    std::array<char, 32> text{};
    std::snprintf(text.data(), text.size(), " 0x%llx", static_cast<unsigned long long>(place));
    command += text.data();
  }
  std::map<std::uintptr_t, std::string> functions;
  std::FILE* const output = popen((command + " 2>/dev/null").c_str(), "r");
  if (!output) return functions;
  std::array<char, 8192> line{};
  for (const std::uintptr_t place : places) {  // a line with the name, and one with the file
    if (!std::fgets(line.data(), line.size(), output)) break;
    functions[place] = short_name(line.data());
    if (!std::fgets(line.data(), line.size(), output)) break;
  }
  pclose(output);
  return functions;
}

// Who says something of whoever waited: not the fakes, and not what all ranks meet in.
bool tells(const std::string& name) {
  const bool is_ours = name.starts_with("tandem::") || name.starts_with("train::");
  return is_ours && !name.starts_with("tandem::test::") && !name.starts_with("tandem::comm::RankGroup");
}

}  // namespace

void note_wait(const char* kind, const char* of) {
  if (!counting) return;
  std::vector<std::uintptr_t> called = callers();
  const std::lock_guard lock(counts().mutex);
  counts().waits[{kind, of, std::move(called)}] += 1;
}

void note_launch(const std::string& name) {
  if (!counting) return;
  const std::lock_guard lock(counts().mutex);
  counts().launches[name] += 1;
}

// The innermost functions of Tandem's and of the program's.
std::map<std::string, int> host_waits() {
  constexpr int kMost = 6;
  const std::lock_guard lock(counts().mutex);
  std::set<std::uintptr_t> places;
  for (const auto& [place, count] : counts().waits) places.insert(place.called.begin(), place.called.end());
  auto functions = functions_at(places);
  std::map<std::string, int> all;
  for (const auto& [place, count] : counts().waits) {
    std::string text = place.kind + (*place.of ? " of " + std::string(place.of) : std::string());
    int shown = 0;
    for (const std::uintptr_t at : place.called)
      if (shown < kMost && tells(functions[at])) text += (shown++ == 0 ? " in " : ", called by ") + functions[at];
    all[text] += count;
  }
  return all;
}

std::map<std::string, int> launches() {
  const std::lock_guard lock(counts().mutex);
  return counts().launches;
}

void count_from_now() {
  const std::lock_guard lock(counts().mutex);
  counts().waits.clear();
  counts().launches.clear();
  counting = true;
}

}  // namespace tandem::test::fake
