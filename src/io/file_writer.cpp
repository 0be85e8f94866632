#include "io/file_writer.h"

#include <fcntl.h>
#include <libdeflate.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <utility>

#include "tandem/core/error.h"

namespace tandem::io {
namespace {

[[noreturn]] void fail(const std::string& path, const char* what) {
  throw CheckpointError(path + ": " + what + ": " + system_error());
}

// Whether a file system says only that it cannot sync such a thing, as many in user space, on networks and shared with
// virtual machines say of directories, and the system of devices and pipes.
bool cannot_sync(int error) {
  switch (error) {
    case EINVAL:
    case ENOTSUP:
    case ENOSYS:
    case ENOTTY:
    case EBADF:
    case EISDIR:
    case EACCES:
    case EPERM: return true;
    default: return false;
  }
}

bool sync(int fd) {
  return again([&] { return ::fsync(fd); }) == 0 || cannot_sync(errno);
}

}  // namespace

NoWriteSignals::NoWriteSignals() {
  sigset_t both, pending;
  sigemptyset(&both);
  sigemptyset(&pending);
  sigpending(&pending);
  for (const int signal : {SIGPIPE, SIGXFSZ}) {
    sigaddset(&both, signal);
    if (sigismember(&pending, signal) == 0) sigaddset(&made_, signal);
  }
  pthread_sigmask(SIG_BLOCK, &both, &before_);
}

NoWriteSignals::~NoWriteSignals() {
  const int error = errno;
  const timespec at_once{};
  while (again([&] { return sigtimedwait(&made_, nullptr, &at_once); }) > 0) {
  }
  pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  errno = error;
}

std::string system_error() { return std::strerror(errno); }

FileWriter::FileWriter(std::string path, std::string shown)
    : path_(std::move(path)), shown_(shown.empty() ? path_ : std::move(shown)) {
  fd_ = again([&] { return ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666); });
  if (fd_ < 0) fail(shown_, "cannot be created");
}

FileWriter::FileWriter(int fd, std::string shown) : shown_(std::move(shown)), fd_(fd) {}

FileWriter::~FileWriter() {
  if (fd_ >= 0) ::close(fd_);
  if (!finished_ && !path_.empty()) ::unlink(path_.c_str());
}

void FileWriter::write(const void* data, std::size_t bytes) {
  constexpr std::size_t kPart = 256 << 10;  // that stays in a core's cache from the hash to the copy by the kernel
  const auto* at = static_cast<const unsigned char*>(data);
  for (std::size_t done = 0; done < bytes; done += kPart) write_part(at + done, std::min(kPart, bytes - done));
}

void FileWriter::write_part(const unsigned char* at, std::size_t bytes) {
  crc32_ = ::libdeflate_crc32(crc32_, at, bytes);
  bytes_ += bytes;
  const NoWriteSignals no_signals;
  while (bytes > 0) {
    const ssize_t done = again([&] { return ::write(fd_, at, bytes); });
    if (done < 0 && errno == EAGAIN) {  // whoever has opened it does not wait
      pollfd room{.fd = fd_, .events = POLLOUT, .revents = 0};
      again([&] { return ::poll(&room, 1, -1); });
      continue;
    }
    if (done < 0) fail(shown_, "cannot be written");
    at += done;
    bytes -= static_cast<std::size_t>(done);
  }
}

void FileWriter::finish() {
  if (!sync(fd_)) fail(shown_, "cannot be written");
  // Its descriptor is gone even where close fails, which file systems on a network use to tell of lost writes.
  if (::close(std::exchange(fd_, -1)) != 0 && errno != EINTR) fail(shown_, "cannot be written");
  finished_ = true;
}

void sync_directory(const std::string& directory) {
  const int fd = again([&] { return ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); });
  const bool synced = fd < 0 ? cannot_sync(errno) : sync(fd);  // one that may be written, but not read
  const int error = errno;
  if (fd >= 0) ::close(fd);
  errno = error;
  if (!synced) fail(directory, "cannot be synced");
}

bool is_still(const std::string& path, int fd) {
  struct stat here = {}, there = {};
  return ::stat(path.c_str(), &there) == 0 && ::fstat(fd, &here) == 0 && here.st_ino == there.st_ino &&
         here.st_dev == there.st_dev;
}

}  // namespace tandem::io
