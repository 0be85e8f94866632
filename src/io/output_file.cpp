#include "io/output_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <optional>
#include <thread>
#include <utility>

#include "tandem/core/error.h"

namespace tandem::io {
namespace {

namespace fs = std::filesystem;

std::string parent_of(const std::string& path) {
  const fs::path parent = fs::path(path).parent_path();
  return parent.empty() ? "." : parent.string();
}

// With all links in it followed; empty when there is no such directory.
fs::path real_parent_of(const std::string& path) {
  std::error_code error;
  return fs::canonical(parent_of(path), error);
}

// Links there are no names of what they lead to.
bool is_in_proc(const std::string& path) { return real_parent_of(path).string().starts_with("/proc/"); }

// The descriptor of this process that `path` names, as /dev/fd/1 does.
std::optional<int> descriptor_of(const std::string& path) {
  std::error_code error;
  const fs::path process = fs::canonical("/proc/self", error), folder = real_parent_of(path);
  const fs::path owner = folder.parent_path();  // the process or one of its threads
  if (error || folder.filename() != "fd" || (owner != process && owner.parent_path() != process / "task"))
    return std::nullopt;
  const std::string name = fs::path(path).filename().string();
  int number = 0;
  const auto [end, problem] = std::from_chars(name.data(), name.data() + name.size(), number);
  if (problem != std::errc() || end != name.data() + name.size()) return std::nullopt;
  return number;
}

bool may_write(const std::string& path, int also = 0) {
  return ::faccessat(AT_FDCWD, path.c_str(), W_OK | also, AT_EACCESS) == 0;
}

// Whether no other file can be renamed to the one at `path`.
bool must_stay(const std::string& path) {
  const std::string folder = parent_of(path);
  struct stat file {
  }, its_folder{};
  if (::stat(path.c_str(), &file) != 0 || ::stat(folder.c_str(), &its_folder) != 0) return false;
  const uid_t me = ::geteuid();
  const bool is_others = (its_folder.st_mode & S_ISVTX) != 0 && me != 0 && me != file.st_uid && me != its_folder.st_uid;
  return is_others || is_mount_point(path) || is_in_proc(path) || !may_write(folder, X_OK);
}

// Of the names beside `path` for what takes its place.
std::string temporary_prefix(const std::string& path) {
  constexpr std::size_t kLongest = 200;  // names have at most 255 bytes
  return ".tandem-writing-" + fs::path(path).filename().string().substr(0, kLongest) + "-";
}

std::string temporary_for(const std::string& path) {
  static std::atomic<unsigned> count{0};
  return parent_of(path) + "/" + temporary_prefix(path) + std::to_string(::getpid()) + "-" + std::to_string(count++);
}

bool lock(int fd) {
  return again([&] { return ::flock(fd, LOCK_EX | LOCK_NB); }) == 0;
}

// What writers of `path` have left that were killed: those that live have it locked.
void remove_left_over(const std::string& path) {
  const std::string prefix = temporary_prefix(path);
  std::error_code error;
  for (auto entry = fs::directory_iterator(parent_of(path), error); !error && entry != fs::directory_iterator();
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (!name.starts_with(prefix) || name.find_first_not_of("0123456789-", prefix.size()) != std::string::npos)
      continue;
    const int fd = ::open(entry->path().c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) continue;
    if (lock(fd)) ::unlink(entry->path().c_str());
    ::close(fd);
  }
}

// A new file beside `path`, which it takes the place of in the end; it goes with the object otherwise.
class Temporary {
 public:
  Temporary(const std::string& path, const std::string& shown) {
    for (;;) {
      path_ = temporary_for(path);
      fd_ = again([&] { return ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666); });
      if (fd_ < 0 && errno == EEXIST) continue;  // of an earlier process of this number
      if (fd_ < 0) throw CheckpointError(shown + ": cannot be created: " + system_error());
      // Before it is locked another writer may take it for left over. Where nothing can be locked nobody does.
      const bool taken = !lock(fd_) && errno == EWOULDBLOCK;
      if (!taken && is_still(path_, fd_)) return;
      ::close(fd_);
    }
  }
  ~Temporary() {
    if (!path_.empty()) ::unlink(path_.c_str());
    ::close(fd_);
  }
  Temporary(const Temporary&) = delete;
  Temporary& operator=(const Temporary&) = delete;

  // Another descriptor of it.
  int open_again() const { return ::fcntl(fd_, F_DUPFD_CLOEXEC, STDERR_FILENO + 1); }

  // As far as this user may.
  void take_owner_and_permissions(const struct stat& of) const {
    constexpr mode_t kPermissions = 0777;
    const bool has_group =
        ::fchown(fd_, of.st_uid, of.st_gid) == 0 || ::fchown(fd_, static_cast<uid_t>(-1), of.st_gid) == 0;
    struct stat mine {};
    ::fstat(fd_, &mine);
    const mode_t withheld = has_group || mine.st_gid == of.st_gid ? mode_t{0} : mode_t{S_IRWXG};  // another group's
    ::fchmod(fd_, of.st_mode & kPermissions & ~withheld);
  }

  bool rename_to(const std::string& path) {
    if (::rename(path_.c_str(), path.c_str()) != 0) return false;
    path_.clear();
    return true;
  }

 private:
  std::string path_;
  int fd_ = -1;
};

std::string problem_with_descriptor(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0) return "descriptor " + std::to_string(fd) + " is not open";
  return (flags & O_ACCMODE) == O_RDONLY ? "descriptor " + std::to_string(fd) + " is open for reading only" : "";
}

int open_fifo(const std::string& path, const std::function<bool()>& gives_up) {
  for (;;) {
    const int fd = again([&] { return ::open(path.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC); });
    if (fd >= 0 || errno != ENXIO) return fd;
    if (gives_up && gives_up()) throw Cancelled("interrupted while '" + path + "' had no reader");
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

}  // namespace

std::string follow_links(std::string path) {
  constexpr int kMost = 40;  // as the system's
  std::error_code error;
  for (int links = 0; links < kMost && !is_in_proc(path); ++links) {
    if (!fs::is_symlink(fs::symlink_status(path, error))) break;
    const fs::path target = fs::read_symlink(path, error);
    if (error) break;
    path = (fs::path(parent_of(path)) / target).string();
  }
  return path;
}

bool is_mount_point(const std::string& path) {
  struct statx status {};
  if (::statx(AT_FDCWD, path.c_str(), 0, STATX_TYPE, &status) != 0) return false;
  if (status.stx_attributes_mask & STATX_ATTR_MOUNT_ROOT) return (status.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0;
  struct stat here {
  }, above{};  // an older system
  return ::stat(path.c_str(), &here) == 0 && ::stat(parent_of(path).c_str(), &above) == 0 &&
         here.st_dev != above.st_dev;
}

bool is_append_only(const std::string& path) {
  struct statx status {};
  return ::statx(AT_FDCWD, path.c_str(), 0, STATX_TYPE, &status) == 0 &&
         (status.stx_attributes & STATX_ATTR_APPEND) != 0;
}

void check_renames_in(const std::string& directory, const std::string& shown) {
  if (is_append_only(directory))
    throw CheckpointError(shown + ": cannot be written: '" + directory +
                          "' is append-only (chattr +a), and nothing in it can be renamed");
}

// What there is at a path by now.
struct OutputFile::Place {
  explicit Place(const std::string& shown) : path(follow_links(shown)), descriptor(descriptor_of(path)) {
    there = ::stat(shown.c_str(), &status) == 0;  // which the system may refuse where it lets nobody follow a link
    error = there ? 0 : errno;
  }

  bool is_stream() const { return descriptor || (there && !S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode)); }
  bool is_overwritten() const { return is_append_only(parent_of(path)) || (there && must_stay(path)); }

  // Why it cannot be written; empty: it can.
  std::string problem() const {
    if (descriptor) return problem_with_descriptor(*descriptor);
    if (there && S_ISDIR(status.st_mode)) return "it is a directory";
    if (there && S_ISSOCK(status.st_mode)) return "it is a socket";
    if (there && is_append_only(path)) return "it is append-only (chattr +a)";
    if (there) return may_write(path) ? "" : system_error();
    if (error != ENOENT) return std::strerror(error);
    std::error_code ignored;
    return fs::is_directory(parent_of(path), ignored) ? "" : "the directory '" + parent_of(path) + "' does not exist";
  }

  std::string path;  // where the links lead
  std::optional<int> descriptor;
  struct stat status {};
  bool there;
  int error;  // why it is not
};

void OutputFile::fail(const std::string& problem) const {
  throw CheckpointError(shown_ + ": cannot be written: " + problem);
}

bool OutputFile::is_stream() const { return Place(shown_).is_stream(); }

void OutputFile::check() const {
  const auto refuse = [&](const std::string& problem) {
    throw ConfigError("'" + shown_ + "' cannot be written: " + problem);
  };
  if (shown_.empty()) throw ConfigError("an empty file name cannot be written");
  const Place place(shown_);
  if (const std::string problem = place.problem(); !problem.empty()) refuse(problem);
  if (place.is_stream()) return;
  if (place.is_overwritten()) {
    if (!place.there && !may_write(parent_of(place.path), X_OK)) refuse(system_error());
    return;
  }
  const std::string probe = temporary_for(place.path);
  const int fd = again([&] { return ::open(probe.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600); });
  if (fd < 0) refuse(system_error());
  ::close(fd);
  ::unlink(probe.c_str());
}

void OutputFile::open(const std::function<bool()>& gives_up) {
  const Place place(shown_);
  if (stream_ || !place.is_stream()) return;
  if (const std::string problem = place.problem(); !problem.empty()) fail(problem);
  if (place.descriptor)
    fd_ = ::fcntl(*place.descriptor, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
  else if (S_ISFIFO(place.status.st_mode))
    fd_ = open_fifo(place.path, gives_up);
  else
    fd_ = again([&] { return ::open(place.path.c_str(), O_WRONLY | O_NOCTTY | O_CLOEXEC); });
  if (fd_ < 0) fail(system_error());
  stream_ = std::make_unique<FileWriter>(fd_, shown_);
}

bool OutputFile::is_open_as(int fd) const {
  struct stat mine {
  }, other{};
  if (!stream_ || ::fstat(fd_, &mine) != 0 || ::fstat(fd, &other) != 0 || S_ISCHR(mine.st_mode)) return false;
  return mine.st_dev == other.st_dev && mine.st_ino == other.st_ino;
}

void OutputFile::write(const std::function<void(const WriteBytes&)>& produce) {
  const auto write_to = [&](FileWriter& file) {
    produce([&file](const void* data, std::size_t bytes) { file.write(data, bytes); });
    file.finish();
  };
  open();
  if (const auto stream = std::exchange(stream_, nullptr)) return write_to(*stream);
  const Place place(shown_);
  if (const std::string problem = place.problem(); !problem.empty()) fail(problem);
  if (place.is_overwritten()) {
    const int fd = again([&] { return ::open(place.path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666); });
    if (fd < 0) fail(system_error());
    FileWriter file(fd, shown_);
    produce([&](const void* data, std::size_t bytes) {
      if (file.bytes() == 0 && ::ftruncate(fd, 0) != 0) fail(system_error());
      file.write(data, bytes);
    });
    return file.finish();
  }
  remove_left_over(place.path);
  Temporary temporary(place.path, shown_);
  if (place.there) temporary.take_owner_and_permissions(place.status);
  const int fd = temporary.open_again();
  if (fd < 0) fail(system_error());
  FileWriter file(fd, shown_);
  write_to(file);
  if (!temporary.rename_to(place.path)) fail(system_error());
  sync_directory(parent_of(place.path));
}

}  // namespace tandem::io
