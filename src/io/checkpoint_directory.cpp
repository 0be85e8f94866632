#include "tandem/io/checkpoint_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string_view>
#include <utility>

#include <nlohmann/json.hpp>

#include "io/file_writer.h"
#include "tandem/core/error.h"

namespace tandem::io {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kManifest = "manifest.json";
constexpr const char* kFormat = "tandem checkpoint";
constexpr int kVersion = 1;
constexpr std::string_view kTemporary = ".tandem-saving-";
constexpr std::uint64_t kMostManifestBytes = 16 << 20;

[[noreturn]] void fail(const std::string& path, const std::string& problem) {
  throw CheckpointError(path + ": " + problem);
}

bool is_name(const std::string& name) {
  const auto allowed = [](unsigned char c) { return (c < 128 && std::isalnum(c)) || c == '.' || c == '_' || c == '-'; };
  return !name.empty() && name.size() <= 200 && name.front() != '.' && std::all_of(name.begin(), name.end(), allowed);
}

std::string hex(std::uint32_t number) {
  char text[9];
  std::snprintf(text, sizeof text, "%08x", number);
  return text;
}

std::uint32_t crc32_of(std::string_view bytes) {
  return static_cast<std::uint32_t>(::crc32_z(0, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size()));
}

// The only way to write it, so that every byte of it counts.
std::string text_of(Json manifest) {
  manifest.erase("crc32");
  manifest["crc32"] = hex(crc32_of(manifest.dump()));
  return manifest.dump(1) + "\n";
}

std::string parent_of(const std::string& path) {
  const fs::path parent = fs::path(path).parent_path();
  return parent.empty() ? "." : parent.string();
}

// "a/b/" names the same as "a/b".
std::string without_slashes(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

void check_can_be_replaced(const std::string& path) {
  std::error_code error;
  const auto status = fs::symlink_status(path, error);
  if (!fs::exists(status)) return;
  if (!fs::is_directory(status)) fail(path, "cannot be a checkpoint: it is there already, and no directory");
  if (fs::is_empty(path, error) || fs::exists(path + "/" + kManifest, error)) return;
  fail(path, "is a directory of other files; a checkpoint would replace them");
}

// Directories of writers that do not live any more.
void remove_left_over(const std::string& parent) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(parent, error)) {
    if (!entry.path().filename().string().starts_with(kTemporary)) continue;
    const int fd = ::open(entry.path().c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) continue;
    if (::flock(fd, LOCK_EX | LOCK_NB) == 0) fs::remove_all(entry.path(), error);
    ::close(fd);
  }
}

}  // namespace

CheckpointWriter::CheckpointWriter(std::string path)
    : path_(without_slashes(std::move(path))), parent_(parent_of(path_)) {
  check_can_be_replaced(path_);
  remove_left_over(parent_);
  std::string pattern = parent_ + "/" + std::string(kTemporary) + "XXXXXX";
  if (!::mkdtemp(pattern.data())) fail(path_, "cannot be written: " + parent_ + ": " + system_error());
  temporary_ = pattern;
  ::chmod(temporary_.c_str(), 0755);  // as any directory
  lock_ = ::open(temporary_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (lock_ >= 0) ::flock(lock_, LOCK_EX | LOCK_NB);  // where that fails, another writer may take it for left over
}

CheckpointWriter::~CheckpointWriter() {
  std::error_code error;
  if (!temporary_.empty()) fs::remove_all(temporary_, error);
  if (lock_ >= 0) ::close(lock_);
}

void CheckpointWriter::add(const std::string& name, const std::function<void(const WriteBytes&)>& produce) {
  if (!is_name(name) || name == kManifest) fail(path_, "a checkpoint's file cannot be named '" + name + "'");
  if (files_.contains(name)) fail(path_, "the file '" + name + "' comes twice");
  FileWriter file(temporary_ + "/" + name);
  produce([&file](const void* data, std::size_t bytes) { file.write(data, bytes); });
  file.finish();
  files_[name] = {file.bytes(), file.crc32()};
}

void CheckpointWriter::add(const std::string& name, const std::string& bytes) {
  add(name, [&](const WriteBytes& write) { write(bytes.data(), bytes.size()); });
}

void CheckpointWriter::write_manifest(const std::map<std::string, std::string>& info) {
  Json files = Json::object();
  for (const auto& [name, file] : files_) files[name] = {{"bytes", file.bytes}, {"crc32", hex(file.crc32)}};
  Json manifest{{"format", kFormat}, {"version", kVersion}, {"info", info}, {"files", std::move(files)}};
  std::string text;
  try {
    text = text_of(std::move(manifest));
  } catch (const Json::exception& error) {  // such as text that is no UTF-8
    fail(path_, std::string("its info cannot be written: ") + error.what());
  }
  FileWriter file(temporary_ + "/" + kManifest);
  file.write(text.data(), text.size());
  file.finish();
}

void CheckpointWriter::put_into_place() {
  if (::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, path_.c_str(), RENAME_NOREPLACE) == 0) {
    temporary_.clear();
    return;
  }
  if (errno == EINVAL && ::rename(temporary_.c_str(), path_.c_str()) == 0) {  // a file system without flags
    temporary_.clear();
    return;
  }
  // Both are there at each moment; the old one is then removed as what is temporary.
  if (errno != EEXIST && errno != ENOTEMPTY) fail(path_, "cannot be written: " + system_error());
  check_can_be_replaced(path_);
  if (::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, path_.c_str(), RENAME_EXCHANGE) != 0)
    fail(path_, "cannot be replaced: " + system_error());
}

void CheckpointWriter::commit(const std::map<std::string, std::string>& info) {
  write_manifest(info);
  sync_directory(temporary_);
  put_into_place();
  try {
    sync_directory(parent_);
  } catch (const CheckpointError& error) {
    fail(path_, std::string("was written, but may be gone after a power cut: ") + error.what());
  }
}

// ---- reading

namespace {

class ReadFile {
 public:
  explicit ReadFile(std::string path) : path_(std::move(path)) {
    fd_ = ::open(path_.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd_ < 0) fail(path_, errno == ELOOP ? "is a link" : "cannot be opened: " + system_error());
    struct stat status {};
    if (::fstat(fd_, &status) != 0 || !S_ISREG(status.st_mode)) {
      ::close(fd_);
      fail(path_, "is no file");
    }
    bytes_ = static_cast<std::uint64_t>(status.st_size);
  }
  ~ReadFile() { ::close(fd_); }
  ReadFile(const ReadFile&) = delete;
  ReadFile& operator=(const ReadFile&) = delete;

  std::uint64_t bytes() const { return bytes_; }

  // Fewer only at the end.
  std::size_t read(char* to, std::size_t most) const {
    std::size_t all = 0;
    while (all < most) {
      const ssize_t done = ::read(fd_, to + all, most - all);
      if (done < 0 && errno == EINTR) continue;
      if (done < 0) fail(path_, "cannot be read: " + system_error());
      if (done == 0) break;
      all += static_cast<std::size_t>(done);
    }
    return all;
  }

 private:
  const std::string path_;
  int fd_;
  std::uint64_t bytes_ = 0;
};

Json parse_manifest(const std::string& path) {
  const ReadFile file(path);
  if (file.bytes() > kMostManifestBytes) fail(path, "is too long for a manifest");
  std::string text(file.bytes(), '\0');
  text.resize(file.read(text.data(), text.size()));
  Json manifest = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!manifest.is_object() || !manifest.contains("format") || manifest["format"] != kFormat)
    fail(path, "is no manifest of a checkpoint of Tandem's, or damaged");
  const auto version = manifest.find("version");
  if (version == manifest.end() || !version->is_number_integer()) fail(path, "has no whole number as version");
  if (*version != kVersion)
    fail(path, "is of version " + version->dump() + ", and this Tandem reads version " + std::to_string(kVersion));
  const auto damaged = [&] {
    try {
      return text_of(manifest) != text;
    } catch (const Json::exception&) {
      return true;
    }
  };
  if (damaged()) fail(path, "is damaged: its crc32 is not that of its text");
  return manifest;
}

std::uint32_t parse_crc32(const std::string& path, const std::string& name, const Json& value) {
  std::uint32_t number = 0;
  const std::string text = value.is_string() ? value.get<std::string>() : "";
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, 16);
  if (text.size() != 8 || error != std::errc() || end != text.data() + text.size())
    fail(path, "the crc32 of '" + name + "' is not eight hexadecimal digits");
  return number;
}

}  // namespace

CheckpointReader::CheckpointReader(std::string path) : path_(without_slashes(std::move(path))) {
  std::error_code error;
  if (!fs::is_directory(path_, error)) fail(path_, fs::exists(path_, error) ? "is no directory" : "does not exist");
  const std::string manifest_path = path_ + "/" + kManifest;
  const Json manifest = parse_manifest(manifest_path);
  const auto part = [&](const char* field) {
    const auto found = manifest.find(field);
    if (found == manifest.end() || !found->is_object()) fail(manifest_path, std::string(field) + " is no object");
    return *found;
  };
  const Json info = part("info"), files = part("files");
  for (const auto& [key, value] : info.items()) {
    if (!value.is_string()) fail(manifest_path, "info '" + key + "' is no text");
    info_[key] = value.get<std::string>();
  }
  for (const auto& [name, value] : files.items()) {
    if (!is_name(name)) fail(manifest_path, "'" + name + "' is no name of a checkpoint's file");
    if (!value.is_object() || !value.contains("bytes") || !value["bytes"].is_number_unsigned() ||
        !value.contains("crc32"))
      fail(manifest_path, "'" + name + "' lacks bytes or crc32");
    const File file{value["bytes"].get<std::uint64_t>(), parse_crc32(manifest_path, name, value["crc32"])};
    const std::uint64_t there = ReadFile(path_ + "/" + name).bytes();
    if (there != file.bytes)
      fail(path_ + "/" + name,
           "is cut off or too long: it has " + std::to_string(there) + " bytes of " + std::to_string(file.bytes));
    files_[name] = file;
  }
}

std::vector<std::string> CheckpointReader::names() const {
  std::vector<std::string> names;
  for (const auto& [name, file] : files_) names.push_back(name);
  return names;
}

const CheckpointReader::File& CheckpointReader::find(const std::string& name) const {
  const auto found = files_.find(name);
  if (found == files_.end()) fail(path_, "the checkpoint has no file '" + name + "'");
  return found->second;
}

std::uint64_t CheckpointReader::bytes_of(const std::string& name) const { return find(name).bytes; }

void CheckpointReader::read_in_parts(const std::string& name,
                                     const std::function<void(const char*, std::size_t)>& take) const {
  constexpr std::size_t kPart = 4 << 20;
  const File& file = find(name);
  const std::string file_path = path_ + "/" + name;
  const ReadFile source(file_path);
  std::string part(static_cast<std::size_t>(std::min<std::uint64_t>(file.bytes, kPart)), '\0');
  uLong crc = 0;
  std::uint64_t all = 0;
  while (const std::size_t bytes = source.read(part.data(), part.size())) {
    crc = ::crc32_z(crc, reinterpret_cast<const unsigned char*>(part.data()), bytes);
    all += bytes;
    if (all > file.bytes) break;
    take(part.data(), bytes);
  }
  if (all != file.bytes || crc != file.crc32)
    fail(file_path, "is damaged: its crc32 is " + hex(static_cast<std::uint32_t>(crc)) + ", and was " +
                        hex(file.crc32) + " when it was written");
}

std::string CheckpointReader::read(const std::string& name) const {
  std::string all;
  all.reserve(static_cast<std::size_t>(find(name).bytes));
  read_in_parts(name, [&](const char* data, std::size_t bytes) { all.append(data, bytes); });
  return all;
}

void CheckpointReader::verify() const {
  for (const auto& [name, file] : files_) read_in_parts(name, [](const char*, std::size_t) {});
}

}  // namespace tandem::io
