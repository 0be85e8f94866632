#include "tandem/io/checkpoint_series.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <limits>
#include <system_error>
#include <thread>
#include <utility>

#include "io/checkpoint_error.h"
#include "io/file_writer.h"
#include "io/output_file.h"
#include "tandem/core/error.h"

namespace tandem::io {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "checkpoint_";
constexpr const char* kLatest = "latest";
constexpr const char* kLock = ".tandem-lock";
constexpr const char* kRemoving = ".tandem-removing-";

// The number in the name of a checkpoint.
std::optional<std::int64_t> number_of(std::string_view name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  name.remove_prefix(kPrefix.size());
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
  const bool is_number = error == std::errc() && end == name.data() + name.size() && name.front() != '-' &&
                         number < std::numeric_limits<std::int64_t>::max();  // there is a next one
  return is_number ? std::optional(number) : std::nullopt;
}

struct Numbered {
  std::int64_t number;
  std::string path;
};

// All entries that are named as checkpoints, by number.
std::vector<Numbered> numbered(const std::string& directory) {
  std::vector<Numbered> all;
  std::error_code error;
  for (auto entry = fs::directory_iterator(directory, error); !error && entry != fs::directory_iterator();
       entry.increment(error))
    if (const auto number = number_of(entry->path().filename().string()))
      all.push_back({*number, entry->path().string()});
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.number < b.number; });
  return all;
}

std::string name_of(const std::string& checkpoint) { return fs::path(checkpoint).filename().string(); }

void make_directory(const std::string& directory) {
  std::error_code error;
  fs::create_directories(follow_links(directory), error);
  if (error) throw_checkpoint_error(directory, "cannot be made: " + error.message());
}

void point_latest(const std::string& directory, const std::string& name) {
  const std::string link = directory + "/" + kLatest;
  const std::string temporary = link + ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(::gettid());
  std::error_code error;
  // Somebody's own file of that name stays.
  if (const auto status = fs::symlink_status(link, error); fs::exists(status) && !fs::is_symlink(status)) return;
  ::unlink(temporary.c_str());
  if (::symlink(name.c_str(), temporary.c_str()) != 0) {
    // As file systems say that have no links, those of virtual machines among them.
    const std::array no_links{EPERM, EOPNOTSUPP, ENOSYS, EINVAL, EROFS, EPROTO};
    if (std::find(no_links.begin(), no_links.end(), errno) != no_links.end()) return;
  } else if (::rename(temporary.c_str(), link.c_str()) == 0) {
    return;
  }
  const std::string problem = system_error();
  ::unlink(temporary.c_str());
  throw_checkpoint_error(link, "cannot be made a link to " + name + ", which was written: " + problem);
}

// A kill in the middle leaves no half of a checkpoint under its name. Somebody else may have removed it.
void remove(const std::string& directory, const std::string& checkpoint) {
  const std::string going = directory + "/" + kRemoving + name_of(checkpoint);
  std::error_code error, ignored;
  fs::remove_all(going, error);
  if (::rename(checkpoint.c_str(), going.c_str()) != 0) {
    if (errno == ENOENT) return;
    throw_checkpoint_error(checkpoint, "cannot be removed: " + system_error());
  }
  fs::remove_all(going, error);
  if (error && fs::exists(going, ignored)) throw_checkpoint_error(going, "cannot be removed: " + error.message());
}

void remove_left_over(const std::string& directory) {
  std::error_code error, ignored;
  for (auto entry = fs::directory_iterator(directory, error); !error && entry != fs::directory_iterator();
       entry.increment(error))
    if (entry->path().filename().string().starts_with(kRemoving)) fs::remove_all(entry->path(), ignored);
}

// This process, as others are told of it.
std::string this_process() {
  std::array<char, 256> host{};
  ::gethostname(host.data(), host.size() - 1);
  return "process " + std::to_string(::getpid()) + " on " + host.data();
}

std::string now() {
  const std::time_t seconds = std::time(nullptr);
  std::tm utc{};
  std::array<char, 64> text{};
  std::strftime(text.data(), text.size(), "%Y-%m-%d %H:%M:%S UTC", ::gmtime_r(&seconds, &utc));
  return text.data();
}

}  // namespace

std::vector<std::string> list_checkpoints(const std::string& directory) {
  std::vector<std::string> paths;
  std::error_code error;
  for (Numbered& one : numbered(directory))
    if (fs::exists(one.path + "/manifest.json", error)) paths.push_back(std::move(one.path));
  return paths;
}

CheckpointSeries::CheckpointSeries(std::string directory)
    : directory_(std::move(directory)), lock_file_(directory_ + "/" + kLock) {
  make_directory(directory_);
  check_renames_in(directory_, directory_);
  lock();
  if (!is_locked()) return;  // whose they are nobody knows
  for (const std::string& path : list_checkpoints(directory_)) own_.insert(name_of(path));
}

CheckpointSeries::~CheckpointSeries() {
  if (!is_locked()) return;
  if (is_still(lock_file_, lock_)) ::unlink(lock_file_.c_str());
  ::close(lock_);
}

void CheckpointSeries::lock() {
  const auto open = [&](int flags) {
    return again([&] { return ::open(lock_file_.c_str(), flags | O_CLOEXEC, 0666); });
  };
  for (;;) {
    int fd = open(O_RDWR | O_CREAT | O_NOFOLLOW);
    if (fd < 0) fd = open(O_RDONLY | O_NOFOLLOW);  // another user's, who was killed or lives
    if (fd < 0) return;                            // in a directory where nothing can be written: saving will say so
    if (again([&] { return ::flock(fd, LOCK_EX | LOCK_NB); }) != 0) {
      if (errno == EWOULDBLOCK) refuse(fd);
      ::close(fd);
      return;
    }
    if (is_still(lock_file_, fd)) {
      lock_ = fd;
      break;
    }
    ::close(fd);  // who had it has removed it
  }
  const std::string text = this_process() + ", since " + now() + "\n";
  // A full disk leaves the lock what it is.
  if (::ftruncate(lock_, 0) != 0 || ::pwrite(lock_, text.data(), text.size(), 0) < 0) return;
}

void CheckpointSeries::refuse(int lock) const {
  std::array<char, 512> text{};
  for (int tries = 0; tries < 50 && text[0] == 0; ++tries) {  // it may not have been written yet
    if (tries > 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    if (::pread(lock, text.data(), text.size() - 1, 0) < 0) break;
  }
  ::close(lock);
  std::string other(text.data());
  other = other.substr(0, other.find('\n'));
  if (other.empty()) other = "another process";
  if (other.starts_with(this_process() + ",")) other += " (this process itself)";
  throw_checkpoint_error(directory_, other + " writes checkpoints there; wait for its end, or name another directory");
}

std::string CheckpointSeries::next() {
  make_directory(directory_);
  for (;;) {
    const auto all = numbered(directory_);
    const std::int64_t number = all.empty() ? 0 : all.back().number + 1;
    const std::string path = directory_ + "/" + std::string(kPrefix) + std::to_string(number);
    if (is_locked()) return path;
    // Without a lock who makes its directory has the number.
    if (::mkdir(path.c_str(), 0777) == 0) return path;
    if (errno != EEXIST) throw_checkpoint_error(path, "cannot be made: " + system_error());
  }
}

void CheckpointSeries::finish(const std::string& checkpoint, std::optional<std::int64_t> total_limit) {
  const std::string name = name_of(checkpoint);
  own_.insert(name);
  point_latest(directory_, name);  // before the one goes that it was
  if (is_locked()) remove_left_over(directory_);
  auto others = list_checkpoints(directory_);
  std::erase_if(others,
                [&](const std::string& path) { return name_of(path) == name || !own_.contains(name_of(path)); });
  const auto kept = static_cast<std::size_t>(std::max<std::int64_t>(total_limit.value_or(0), 1)) - 1;
  for (std::size_t i = 0; total_limit && i + kept < others.size(); ++i) remove(directory_, others[i]);
}

}  // namespace tandem::io
