#include "support/failing_calls.h"

#include <dlfcn.h>
#include <sys/stat.h>
#include <sys/types.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstddef>

namespace tandem::test {
namespace {

struct Armed {
  std::string call;  // this and the error stay the same while it is armed
  int error = 0;
  std::atomic<int> left = 0;  // calls until it fails; 0 and less: nothing is armed, or it has failed
  std::atomic<bool> each = false;
  std::atomic<bool> came = false;
};

Armed armed;

bool fails(const char* call) {
  if (armed.each && armed.call == call) return armed.came = true;
  if (armed.left <= 0 || armed.call != call || armed.left.fetch_sub(1) != 1) return false;
  armed.came = true;
  return true;
}

// -1 and errno where the call is to fail.
bool fails_with_error(const char* call) {
  if (!fails(call)) return false;
  errno = armed.error;
  return true;
}

template <class Function>
Function* real(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

// Bytes that a read or write may move; nothing: it is to fail.
bool limit(const char* call, std::size_t& bytes) {
  if (!fails(call)) return true;
  errno = armed.error;
  if (armed.error != 0) return false;
  bytes = std::min<std::size_t>(bytes, 1);
  return true;
}

}  // namespace

const std::vector<std::string>& failing_calls() {
  static const std::vector<std::string> calls{"open", "mkdir", "write", "fsync", "close", "renameat2", "flock"};
  return calls;
}

FailingCall::FailingCall(const std::string& call, int nth, int error) {
  armed.call = call;
  armed.error = error;
  armed.came = false;
  armed.left = nth;
  armed.each = nth == kEach;
}
FailingCall::~FailingCall() {
  armed.each = false;
  armed.left = 0;
}
bool FailingCall::came() const { return armed.came; }

}  // namespace tandem::test

extern "C" {

using tandem::test::fails_with_error;
using tandem::test::limit;
using tandem::test::real;

int open(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const auto mode = va_arg(arguments, unsigned);
  va_end(arguments);
  static auto* const call = real<int(const char*, int, ...)>("open");
  return fails_with_error("open") ? -1 : call(path, flags, mode);
}

int mkdir(const char* path, mode_t mode) noexcept {
  static auto* const call = real<int(const char*, mode_t)>("mkdir");
  return fails_with_error("mkdir") ? -1 : call(path, mode);
}

ssize_t write(int fd, const void* data, std::size_t bytes) {
  static auto* const call = real<ssize_t(int, const void*, std::size_t)>("write");
  return limit("write", bytes) ? call(fd, data, bytes) : -1;
}

ssize_t read(int fd, void* data, std::size_t bytes) {
  static auto* const call = real<ssize_t(int, void*, std::size_t)>("read");
  return limit("read", bytes) ? call(fd, data, bytes) : -1;
}

ssize_t pread(int fd, void* data, std::size_t bytes, off_t position) {
  static auto* const call = real<ssize_t(int, void*, std::size_t, off_t)>("pread");
  return limit("pread", bytes) ? call(fd, data, bytes, position) : -1;
}

int rename(const char* from, const char* to) noexcept {
  static auto* const call = real<int(const char*, const char*)>("rename");
  return fails_with_error("rename") ? -1 : call(from, to);
}

int symlink(const char* to, const char* link) noexcept {
  static auto* const call = real<int(const char*, const char*)>("symlink");
  return fails_with_error("symlink") ? -1 : call(to, link);
}

int fsync(int fd) {
  static auto* const call = real<int(int)>("fsync");
  struct stat status {};
  if (fstat(fd, &status) == 0 && S_ISDIR(status.st_mode) && fails_with_error("fsync-directory")) return -1;
  return fails_with_error("fsync") ? -1 : call(fd);
}

// The descriptor is gone all the same.
int close(int fd) {
  static auto* const call = real<int(int)>("close");
  const bool fails = tandem::test::fails("close");
  const int result = call(fd);
  if (!fails) return result;
  errno = EIO;
  return -1;
}

int flock(int fd, int operation) noexcept {
  static auto* const call = real<int(int, int)>("flock");
  return fails_with_error("flock") ? -1 : call(fd, operation);
}

int renameat2(int from_directory, const char* from, int to_directory, const char* to, unsigned flags) noexcept {
  static auto* const call = real<int(int, const char*, int, const char*, unsigned)>("renameat2");
  return fails_with_error("renameat2") ? -1 : call(from_directory, from, to_directory, to, flags);
}
}
