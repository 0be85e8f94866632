#include "io/read_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "io/file_writer.h"
#include "tandem/core/error.h"

namespace tandem::io {
namespace {

[[noreturn]] void fail(const std::string& shown, const std::string& problem) {
  throw CheckpointError(shown + ": " + problem);
}

}  // namespace

ReadFile::ReadFile(const std::string& path, std::string shown) : shown_(std::move(shown)) {
  // A pipe would block.
  fd_ = again([&] { return ::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC); });
  if (fd_ < 0) {
    if (errno == ENOENT) fail(shown_, "does not exist");
    fail(shown_, errno == ELOOP ? "is a link" : "cannot be opened: " + system_error());
  }
  struct stat status {};
  if (::fstat(fd_, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(fd_);
    fail(shown_, "is no file");
  }
  bytes_ = static_cast<std::uint64_t>(status.st_size);
}

ReadFile::~ReadFile() { ::close(fd_); }

// As many bytes as there are, by calls of `read_some(to, most)`.
template <class ReadSome>
std::size_t ReadFile::read_all(char* to, std::size_t most, const ReadSome& read_some) const {
  std::size_t all = 0;
  while (all < most) {
    const ssize_t done = again([&] { return read_some(to + all, most - all); });
    if (done < 0) fail(shown_, "cannot be read: " + system_error());
    if (done == 0) break;
    all += static_cast<std::size_t>(done);
  }
  return all;
}

std::size_t ReadFile::read(char* to, std::size_t most) const {
  return read_all(to, most, [this](char* at, std::size_t bytes) { return ::read(fd_, at, bytes); });
}

std::size_t ReadFile::read_at(std::uint64_t position, char* to, std::size_t most) const {
  return read_all(to, most, [&, start = to](char* at, std::size_t bytes) {
    return ::pread(fd_, at, bytes, static_cast<off_t>(position) + (at - start));
  });
}

OpenDirectory::OpenDirectory(const std::string& path) {
  fd_ = again([&] { return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); });
  if (fd_ >= 0) return;
  if (errno == ENOENT) fail(path, "does not exist");
  fail(path, errno == ENOTDIR ? "is no directory" : "cannot be opened: " + system_error());
}

OpenDirectory::~OpenDirectory() { ::close(fd_); }

std::string OpenDirectory::operator/(const std::string& name) const {
  return "/proc/self/fd/" + std::to_string(fd_) + "/" + name;
}

std::string read_text(const std::string& path, const std::string& shown, std::uint64_t most) {
  const ReadFile file(path, shown);
  if (file.bytes() > most) fail(shown, "is too long: " + std::to_string(file.bytes()) + " bytes");
  std::string text(static_cast<std::size_t>(file.bytes()), '\0');
  text.resize(file.read(text.data(), text.size()));
  return text;
}

nlohmann::json parse_json(const std::string& text) {
  constexpr int kDeepest = 8;
  bool too_deep = false;
  const auto look = [&](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
    too_deep = too_deep || depth > kDeepest;
    return !too_deep;  // what is discarded takes no memory
  };
  auto value = nlohmann::json::parse(text, look, /*allow_exceptions=*/false);
  return too_deep ? nlohmann::json(nlohmann::json::value_t::discarded) : value;
}

}  // namespace tandem::io
