#include "io/append_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "io/file_writer.h"
#include "io/output_file.h"
#include "tandem/core/error.h"

namespace tandem::io {
namespace {

[[noreturn]] void fail(const std::string& path, const std::string& what) { throw Error(path + ": " + what); }

struct stat status_of(int fd, const std::string& path) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) fail(path, "cannot be examined: " + system_error());
  return status;
}

}  // namespace

void make_directories(const std::string& directory) {
  std::error_code error;
  std::filesystem::create_directories(follow_links(directory), error);
  if (error) fail(directory, "cannot be made: " + error.message());
}

void write_file(const std::string& path, std::string_view bytes) {
  const int fd = again([&] { return ::open(path.c_str(), O_WRONLY | O_TRUNC | O_CREAT | O_CLOEXEC, 0644); });
  if (fd < 0) fail(path, "cannot be opened: " + system_error());
  while (!bytes.empty()) {
    const ssize_t done = again([&] { return ::write(fd, bytes.data(), bytes.size()); });
    if (done < 0) {
      const std::string error = system_error();
      ::close(fd);
      fail(path, "cannot be written: " + error);
    }
    bytes.remove_prefix(static_cast<std::size_t>(done));
  }
  ::close(fd);
}

AppendFile::AppendFile(std::string path) : path_(std::move(path)) {
  // Readable as well, to find the end of its last line. A device such as /dev/full need not be.
  fd_ = again([&] { return ::open(path_.c_str(), O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0644); });
  if (fd_ < 0) fail(path_, "cannot be opened: " + system_error());
}

AppendFile::~AppendFile() { ::close(fd_); }

bool AppendFile::empty() const { return status_of(fd_, path_).st_size == 0; }

void AppendFile::remove_cut_line() {
  const struct stat status = status_of(fd_, path_);
  if (!S_ISREG(status.st_mode)) return;
  std::array<char, 65536> part;
  for (off_t end = status.st_size; end > 0;) {
    const off_t begin = std::max<off_t>(end - static_cast<off_t>(part.size()), 0);
    const ssize_t got = again([&] { return ::pread(fd_, part.data(), static_cast<std::size_t>(end - begin), begin); });
    if (got < 0) fail(path_, "cannot be read: " + system_error());
    const std::size_t newline = std::string_view(part.data(), static_cast<std::size_t>(got)).rfind('\n');
    end = newline == std::string_view::npos ? begin : begin + static_cast<off_t>(newline) + 1;
    if (newline == std::string_view::npos && end > 0) continue;
    if (end < status.st_size && again([&] { return ::ftruncate(fd_, end); }) != 0)
      fail(path_, "cannot be cut: " + system_error());
    return;
  }
}

void AppendFile::append(std::string_view record) {
  const ssize_t done = again([&] { return ::write(fd_, record.data(), record.size()); });
  if (done < 0) fail(path_, "cannot be written: " + system_error());
  // What does not fit as a whole does not fit: the rest would fail.
  if (static_cast<std::size_t>(done) < record.size()) fail(path_, "cannot be written completely; is the disk full?");
  if (status_of(fd_, path_).st_nlink == 0) fail(path_, "has been deleted");
}

}  // namespace tandem::io
