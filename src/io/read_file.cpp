#include "io/read_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>
#include <vector>

#include <libdeflate.h>
#include <zlib.h>

#include "io/checkpoint_error.h"
#include "io/file_writer.h"
#include "io/in_threads.h"
#include "tandem/core/error.h"

namespace tandem::io {
namespace {}  // namespace

ReadFile::ReadFile(const std::string& path, std::string shown, Links links) : shown_(std::move(shown)) {
  const int follow = links == Links::refuse ? O_NOFOLLOW : 0;
  // A pipe would block.
  fd_ = again([&] { return ::open(path.c_str(), O_RDONLY | follow | O_NONBLOCK | O_CLOEXEC); });
  if (fd_ < 0) {
    if (errno == ENOENT) throw_checkpoint_error(shown_, "does not exist");
    throw_checkpoint_error(shown_, errno == ELOOP ? "is a link" : "cannot be opened: " + system_error());
  }
  struct stat status {};
  if (::fstat(fd_, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(fd_);
    throw_checkpoint_error(shown_, "is no file");
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
    if (done < 0) throw_checkpoint_error(shown_, "cannot be read: " + system_error());
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

// What is at `begin` and after it goes to `to`, or nowhere.
std::uint32_t ReadFile::read_piece(std::uint64_t begin, std::uint64_t end, char* to) const {
  constexpr std::uint64_t kPart = 256 << 10;  // that stays in a core's cache from the copy by the kernel to the hash
  std::string unwanted(to ? 0 : static_cast<std::size_t>(std::min(kPart, end - begin)), '\0');
  std::uint32_t crc = 0;
  for (std::uint64_t at = begin; at < end; at += kPart) {
    const auto bytes = static_cast<std::size_t>(std::min(kPart, end - at));
    char* const part = to ? to + (at - begin) : unwanted.data();
    if (read_at(at, part, bytes) != bytes) throw_checkpoint_error(shown_, "has become shorter while it was read");
    crc = ::libdeflate_crc32(crc, part, bytes);
  }
  return crc;
}

std::uint32_t ReadFile::read_whole(char* to) const {
  constexpr std::uint64_t kPiece = 32 << 20;
  std::vector<std::uint32_t> crcs(static_cast<std::size_t>((bytes_ + kPiece - 1) / kPiece));
  const auto end_of = [&](std::size_t i) { return std::min(bytes_, (i + 1) * kPiece); };
  in_threads(crcs.size(),
             [&](std::size_t i) { crcs[i] = read_piece(i * kPiece, end_of(i), to ? to + i * kPiece : nullptr); });
  std::uint32_t all = 0;
  for (std::size_t i = 0; i < crcs.size(); ++i)
    all = static_cast<std::uint32_t>(::crc32_combine(all, crcs[i], static_cast<z_off_t>(end_of(i) - i * kPiece)));
  return all;
}

OpenDirectory::OpenDirectory(const std::string& path) {
  fd_ = again([&] { return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); });
  if (fd_ >= 0) {
    path_ = "/proc/self/fd/" + std::to_string(fd_);
    if (::access(path_.c_str(), F_OK) != 0) path_ = path;
    return;
  }
  if (errno == ENOENT) throw_checkpoint_error(path, "does not exist");
  throw_checkpoint_error(path, errno == ENOTDIR ? "is no directory" : "cannot be opened: " + system_error());
}

OpenDirectory::~OpenDirectory() { ::close(fd_); }

std::string OpenDirectory::operator/(const std::string& name) const { return path_ + "/" + name; }

std::string read_text(const std::string& path, const std::string& shown, std::uint64_t most) {
  const ReadFile file(path, shown);
  if (file.bytes() > most) throw_checkpoint_error(shown, "is too long: " + std::to_string(file.bytes()) + " bytes");
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
