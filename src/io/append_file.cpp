#include "io/append_file.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <climits>
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

// N of /dev/fd/N and what else Linux calls a descriptor of this process; -1: none of it.
int number_in(const std::string& path) {
  for (const auto& [name, fd] : {std::pair{"/dev/stdout", STDOUT_FILENO}, std::pair{"/dev/stderr", STDERR_FILENO}})
    if (path == name) return fd;
  for (const std::string_view folder : {"/dev/fd/", "/proc/self/fd/"}) {
    int fd = -1;
    const char* const end = path.data() + path.size();
    if (path.starts_with(folder) && std::from_chars(path.data() + folder.size(), end, fd).ptr == end) return fd;
  }
  return -1;
}

// The descriptor that this process has open for `path`, or for what it links to; -1: none.
int own_descriptor(const std::string& path) {
  std::filesystem::path at = path;
  std::error_code error;
  for (int links = 0; links < 40; ++links) {
    if (const int fd = number_in(at.string()); fd >= 0) return fd;
    if (!std::filesystem::is_symlink(at, error)) break;
    at = at.parent_path() / std::filesystem::read_symlink(at, error);
  }
  struct stat file {
  }, stream{};
  if (::stat(path.c_str(), &file) != 0) return -1;
  for (const int fd : {STDOUT_FILENO, STDERR_FILENO})
    if (::fstat(fd, &stream) == 0 && stream.st_dev == file.st_dev && stream.st_ino == file.st_ino &&
        (::fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY)
      return fd;
  return -1;
}

bool is_pipe(const std::string& path) {
  std::error_code error;
  return std::filesystem::is_fifo(path, error);
}

int open_to_append(const std::string& path, Unread unread) {
  const auto open_with = [&](int flags) {
    return again([&] { return ::open(path.c_str(), flags | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY, 0666); });
  };
  if (is_pipe(path)) return open_with(O_WRONLY | (unread == Unread::wait ? 0 : O_NONBLOCK));
  // Readable as well, to find the end of its last line. A device such as /dev/full need not be.
  const int fd = open_with(O_RDWR);
  return fd < 0 && errno == EACCES ? open_with(O_WRONLY) : fd;
}

}  // namespace

void make_directories(const std::string& directory) {
  std::error_code error;
  std::filesystem::create_directories(follow_links(directory), error);
  if (error) fail(directory, "cannot be made: " + error.message());
}

void write_file(const std::string& path, std::string_view bytes) {
  const int fd = again([&] { return ::open(path.c_str(), O_WRONLY | O_TRUNC | O_CREAT | O_CLOEXEC, 0666); });
  if (fd < 0) fail(path, "cannot be opened: " + system_error());
  const NoWriteSignals no_signals;
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

AppendFile::AppendFile(std::string path, Unread unread) : path_(std::move(path)) {
  const int own = own_descriptor(path_);
  fd_ = own >= 0 ? ::fcntl(own, F_DUPFD_CLOEXEC, 0) : open_to_append(path_, unread);
  if (fd_ < 0) {
    const std::string error = system_error();
    fail(path_, "cannot be opened: " + (errno == ENXIO && is_pipe(path_) ? "nobody reads this pipe" : error));
  }
  can_be_cut_ = own < 0 && S_ISREG(status_of(fd_, path_).st_mode);
}

AppendFile::~AppendFile() { ::close(fd_); }

bool AppendFile::empty() const { return status_of(fd_, path_).st_size == 0; }

void AppendFile::cut(std::uint64_t bytes) {
  if (static_cast<std::uint64_t>(status_of(fd_, path_).st_size) == bytes) return;  // also where it may only grow
  if (again([&] { return ::ftruncate(fd_, static_cast<off_t>(bytes)); }) == 0) return;
  const std::string error = system_error();
  fail(path_, "cannot be cut: " + (is_append_only(path_) ? "it is append-only (chattr +a)" : error));
}

void AppendFile::remove_cut_line() {
  if (!can_be_cut_) return;
  std::array<char, 65536> part;
  const off_t size = status_of(fd_, path_).st_size;
  for (off_t end = size; end > 0;) {
    const off_t begin = std::max<off_t>(end - static_cast<off_t>(part.size()), 0);
    const ssize_t got = again([&] { return ::pread(fd_, part.data(), static_cast<std::size_t>(end - begin), begin); });
    if (got < 0) fail(path_, "cannot be read: " + system_error());
    const std::size_t newline = std::string_view(part.data(), static_cast<std::size_t>(got)).rfind('\n');
    end = newline == std::string_view::npos ? begin : begin + static_cast<off_t>(newline) + 1;
    if (newline == std::string_view::npos && end > 0) continue;
    if (end < size) cut(static_cast<std::uint64_t>(end));
    return;
  }
}

void AppendFile::append(std::string_view record) {
  constexpr int kPatience = 10'000;  // milliseconds
  std::size_t done = append_some(record);
  // What does not fit as a whole does not fit: the rest would fail.
  if (can_be_cut_ && done < record.size()) fail(path_, "cannot be written completely; is the disk full?");
  while (done < record.size()) {
    wait_for_room(kPatience);
    const std::size_t more = append_some(record.substr(done));
    if (more == 0) fail(path_, "cannot be written: its reader takes nothing");
    done += more;
  }
  if (can_be_cut_) check_is_there();
}

void AppendFile::check_is_there() const {
  if (status_of(fd_, path_).st_nlink == 0) fail(path_, "has been deleted");
}

std::size_t AppendFile::append_some(std::string_view text) {
  const NoWriteSignals no_signals;
  if (can_be_cut_) {
    check_is_there();
    const ssize_t done = again([&] { return ::write(fd_, text.data(), text.size()); });
    if (done < 0) fail(path_, "cannot be written: " + system_error());
    return static_cast<std::size_t>(done);
  }
  std::size_t done = 0;
  pollfd room{.fd = fd_, .events = POLLOUT, .revents = 0};
  while (done < text.size() && ::poll(&room, 1, 0) == 1) {
    // A pipe that has room has room for so much.
    const std::size_t part = std::min<std::size_t>(text.size() - done, PIPE_BUF);
    const ssize_t written = again([&] { return ::write(fd_, text.data() + done, part); });
    if (written < 0 && (errno == EAGAIN || done > 0)) break;  // an error will be there at the next call
    if (written < 0) fail(path_, "cannot be written: " + system_error());
    done += static_cast<std::size_t>(written);
  }
  return done;
}

void AppendFile::wait_for_room(int milliseconds) const {
  pollfd room{.fd = fd_, .events = POLLOUT, .revents = 0};
  ::poll(&room, 1, milliseconds);
}

}  // namespace tandem::io
