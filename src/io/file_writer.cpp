#include "io/file_writer.h"

#include <fcntl.h>
#include <libdeflate.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "tandem/core/error.h"

namespace tandem::io {
namespace {

[[noreturn]] void fail(const std::string& path, const char* what) {
  throw CheckpointError(path + ": " + what + ": " + system_error());
}

}  // namespace

std::string system_error() { return std::strerror(errno); }

FileWriter::FileWriter(std::string path, std::string shown)
    : path_(std::move(path)), shown_(shown.empty() ? path_ : std::move(shown)) {
  fd_ = again([&] { return ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666); });
  if (fd_ < 0) fail(shown_, "cannot be created");
}

FileWriter::~FileWriter() {
  if (fd_ >= 0) ::close(fd_);
  if (!finished_) ::unlink(path_.c_str());
}

void FileWriter::write(const void* data, std::size_t bytes) {
  constexpr std::size_t kPart = 256 << 10;  // that stays in a core's cache from the hash to the copy by the kernel
  const auto* at = static_cast<const unsigned char*>(data);
  for (std::size_t done = 0; done < bytes; done += kPart) write_part(at + done, std::min(kPart, bytes - done));
}

void FileWriter::write_part(const unsigned char* at, std::size_t bytes) {
  crc32_ = ::libdeflate_crc32(crc32_, at, bytes);
  bytes_ += bytes;
  while (bytes > 0) {
    const ssize_t done = again([&] { return ::write(fd_, at, bytes); });
    if (done < 0) fail(shown_, "cannot be written");
    at += done;
    bytes -= static_cast<std::size_t>(done);
  }
}

void FileWriter::finish() {
  if (again([&] { return ::fsync(fd_); }) != 0) fail(shown_, "cannot be written");
  // Its descriptor is gone even where close fails, which file systems on a network use to tell of lost writes.
  if (::close(std::exchange(fd_, -1)) != 0 && errno != EINTR) fail(shown_, "cannot be written");
  finished_ = true;
}

void sync_directory(const std::string& directory) {
  const int fd = again([&] { return ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); });
  const bool synced = fd >= 0 && again([&] { return ::fsync(fd); }) == 0;
  const int error = errno;
  if (fd >= 0) ::close(fd);
  errno = error;
  if (!synced) fail(directory, "cannot be synced");
}

}  // namespace tandem::io
