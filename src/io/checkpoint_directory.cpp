#include "tandem/io/checkpoint_directory.h"

#include <fcntl.h>
#include <libdeflate.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <string_view>
#include <utility>

#include <nlohmann/json.hpp>

#include "io/checkpoint_error.h"
#include "io/file_writer.h"
#include "io/in_threads.h"
#include "io/json_text.h"
#include "io/output_file.h"
#include "io/read_file.h"
#include "tandem/core/error.h"

namespace tandem::io {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;  // its keys are sorted: one text for each manifest

constexpr const char* kManifest = "manifest.json";
constexpr const char* kFormat = "tandem checkpoint";
constexpr int kVersion = 1;
constexpr const char* kNoExchange =
    "cannot be replaced on this file system, which exchanges no directories; save under another name";
constexpr std::uint64_t kMostManifestBytes = 16 << 20;

bool is_name(const std::string& name) {
  const auto allowed = [](unsigned char c) { return (c < 128 && std::isalnum(c)) || c == '.' || c == '_' || c == '-'; };
  return !name.empty() && name.size() <= 200 && name.front() != '.' && std::all_of(name.begin(), name.end(), allowed);
}

std::string hex(std::uint32_t number) {
  char text[9];
  std::snprintf(text, sizeof text, "%08x", number);
  return text;
}

std::uint32_t crc32_of(std::string_view bytes) { return ::libdeflate_crc32(0, bytes.data(), bytes.size()); }

// The only way to write it, so that every byte of it counts.
std::string text_of(Json manifest) {
  manifest.erase("crc32");
  manifest["crc32"] = hex(crc32_of(manifest.dump()));
  return manifest.dump(1) + "\n";
}

Json parse_manifest(const std::string& path, const std::string& shown) {
  const std::string text = read_text(path, shown, kMostManifestBytes);
  const Json manifest = parse_json(text);
  if (!manifest.is_object() || !manifest.contains("format") || manifest["format"] != kFormat)
    throw_checkpoint_error(shown, "is no manifest of a checkpoint of Tandem's, or damaged");
  const auto version = manifest.find("version");
  if (version == manifest.end() || !version->is_number_integer())
    throw_checkpoint_error(shown, "has no whole number as version");
  if (*version != kVersion)
    throw_checkpoint_error(
        shown, "is of version " + version->dump() + ", and this Tandem reads version " + std::to_string(kVersion));
  const auto damaged = [&] {
    try {
      return text_of(manifest) != text;
    } catch (const Json::exception&) {
      return true;
    }
  };
  if (damaged()) throw_checkpoint_error(shown, "is damaged: its crc32 is not that of its text");
  for (const char* field : {"info", "files"})
    if (!manifest.contains(field) || !manifest[field].is_object())
      throw_checkpoint_error(shown, std::string(field) + " is no object");
  return manifest;
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

// Nothing, an empty directory, or a checkpoint and nothing else: everything in it will be gone.
void check_can_be_replaced(const std::string& path, Existing existing) {
  std::error_code error;
  const auto status = fs::symlink_status(path, error);
  if (!fs::exists(status)) return;
  if (!fs::is_directory(status))
    throw_checkpoint_error(path, "cannot be a checkpoint: it is there already, and no directory");
  if (is_mount_point(path))
    throw_checkpoint_error(
        path, "is a mount point, which nothing can take the place of; name a directory in it, such as " + path +
                  (path.back() == '/' ? "" : "/") + "model");
  if (fs::is_empty(path, error)) return;
  if (existing == Existing::keep) throw_checkpoint_error(path, "is there already, and stays");
  const std::string manifest = path + "/" + kManifest;
  if (!fs::exists(manifest, error))
    throw_checkpoint_error(path, "is a directory of other files; a checkpoint would replace them");
  const Json known = parse_manifest(manifest, manifest)["files"];
  for (auto entry = fs::directory_iterator(path, error); !error && entry != fs::directory_iterator();
       entry.increment(error))
    if (const std::string name = entry->path().filename().string(); name != kManifest && !known.contains(name))
      throw_checkpoint_error(
          path, "has the file '" + name + "', which is not the checkpoint's and would be gone with it; move it away");
}

// Of the writers of this directory.
std::string temporary_prefix(const std::string& path) {
  constexpr std::size_t kLongest = 200;  // names have at most 255 bytes
  return ".tandem-saving-" + fs::path(path).filename().string().substr(0, kLongest) + "-";
}

// Not mkdtemp's, whose directories are the user's alone, whatever the umask and the directory around it say.
std::string six_letters() {
  std::random_device random;
  std::string letters;
  while (letters.size() < 6) letters += static_cast<char>('a' + random() % 26);
  return letters;
}

// Directories of writers that do not live any more.
void remove_left_over(const std::string& parent, const std::string& prefix) {
  std::error_code error;
  for (auto entry = fs::directory_iterator(parent, error); !error && entry != fs::directory_iterator();
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (!name.starts_with(prefix) || name.size() != prefix.size() + 6) continue;
    const int fd = ::open(entry->path().c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) continue;
    std::error_code ignored;
    if (::flock(fd, LOCK_EX | LOCK_NB) == 0) fs::remove_all(entry->path(), ignored);
    ::close(fd);
  }
}

// As file systems say that cannot keep a file from being replaced, or exchange two.
bool knows_no_flags(int error) { return error == EINVAL || error == ENOSYS || error == ENOTSUP; }

// Whether the file system of `directory`, which is empty, can exchange two directories.
bool can_exchange(const std::string& directory) {
  const std::string one = directory + "/1", other = directory + "/2";
  std::error_code error;
  fs::create_directory(one, error);
  fs::create_directory(other, error);
  const bool exchanged = ::renameat2(AT_FDCWD, one.c_str(), AT_FDCWD, other.c_str(), RENAME_EXCHANGE) == 0;
  const bool can = exchanged || !knows_no_flags(errno);
  ::rmdir(one.c_str());
  ::rmdir(other.c_str());
  return can;
}

}  // namespace

CheckpointWriter::CheckpointWriter(std::string path, Existing existing)
    : path_(follow_links(without_slashes(std::move(path)))), parent_(parent_of(path_)), existing_(existing) {
  if (path_.empty()) throw_checkpoint_error("''", "cannot be written: the name is empty");
  check_renames_in(parent_, path_);
  check_can_be_replaced(path_, existing_);
  const std::string prefix = temporary_prefix(path_);
  remove_left_over(parent_, prefix);
  constexpr int kTries = 10;
  for (int tries = 0; temporary_.empty(); ++tries) {
    if (tries == kTries)
      throw_checkpoint_error(path_, "cannot be written: the temporary directory beside it does not stay");
    const std::string made = parent_ + "/" + prefix + six_letters();
    if (::mkdir(made.c_str(), 0777) != 0) {
      if (errno == EEXIST) continue;
      throw_checkpoint_error(path_, "cannot be written: " + parent_ + ": " + system_error());
    }
    lock_ = ::open(made.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const bool taken = lock_ >= 0 && ::flock(lock_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    // Another writer may have taken it for left over before it was locked.
    if (lock_ >= 0 && !taken && is_still(made, lock_)) {
      temporary_ = made;
    } else {
      ::rmdir(made.c_str());
      if (lock_ >= 0) ::close(std::exchange(lock_, -1));
    }
  }
  std::error_code error;
  if (fs::exists(path_ + "/" + kManifest, error) && !can_exchange(temporary_)) {
    ::rmdir(temporary_.c_str());
    ::close(lock_);
    throw_checkpoint_error(path_, kNoExchange);
  }
}

CheckpointWriter::~CheckpointWriter() {
  std::error_code error;
  if (!temporary_.empty()) fs::remove_all(temporary_, error);
  if (lock_ >= 0) ::close(lock_);
}

void CheckpointWriter::add(const std::vector<NewFile>& files) {
  check_not_committed();
  auto known = files_;
  for (const NewFile& file : files) {
    if (!is_name(file.name) || file.name == kManifest)
      throw_checkpoint_error(path_, "a checkpoint's file cannot be named '" + file.name + "'");
    if (!known.try_emplace(file.name).second) throw_checkpoint_error(path_, "the file '" + file.name + "' comes twice");
  }
  std::vector<CheckpointFile> written(files.size());
  in_threads(files.size(), [&](std::size_t i) {
    FileWriter file(temporary_ + "/" + files[i].name);
    files[i].produce([&file](const void* data, std::size_t bytes) { file.write(data, bytes); });
    file.finish();
    written[i] = {file.bytes(), file.crc32()};
  });
  for (std::size_t i = 0; i < files.size(); ++i) files_[files[i].name] = written[i];
}

void CheckpointWriter::add(const std::string& name, const std::string& bytes) {
  add({{name, [&](const WriteBytes& write) { write(bytes.data(), bytes.size()); }}});
}

void CheckpointWriter::write_manifest(const std::map<std::string, std::string>& info) {
  Json files = Json::object();
  for (const auto& [name, file] : files_) files[name] = {{"bytes", file.bytes}, {"crc32", hex(file.crc32)}};
  Json manifest{{"format", kFormat}, {"version", kVersion}, {"info", info}, {"files", std::move(files)}};
  exact_json(manifest, path_ + "/" + kManifest);  // info may be any text
  const std::string text = text_of(std::move(manifest));
  FileWriter file(temporary_ + "/" + kManifest);
  file.write(text.data(), text.size());
  file.finish();
}

void CheckpointWriter::check_not_committed() const {
  if (committed_) throw_checkpoint_error(path_, "this checkpoint has been committed already");
}

// Nobody has removed any of them.
void CheckpointWriter::check_complete() const {
  for (const auto& [name, file] : files_)
    if (const std::string path = temporary_ + "/" + name; ReadFile(path, path).bytes() != file.bytes)
      throw_checkpoint_error(path, "has changed since it was written");
}

void CheckpointWriter::put_into_place() {
  if (existing_ == Existing::keep) {  // which a rename does, on every file system: an empty one alone is replaced
    if (::rename(temporary_.c_str(), path_.c_str()) == 0) return temporary_.clear();
    const bool taken = errno == ENOTEMPTY || errno == EEXIST || errno == ENOTDIR;
    throw_checkpoint_error(path_, taken ? "has been written meanwhile by another program, and stays"
                                        : "cannot be written: " + system_error());
  }
  const auto rename_with = [&](unsigned flags) {
    return ::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, path_.c_str(), flags) == 0;
  };
  if (rename_with(RENAME_NOREPLACE)) return temporary_.clear();
  const bool no_flags = knows_no_flags(errno);
  if (no_flags && ::rename(temporary_.c_str(), path_.c_str()) == 0) return temporary_.clear();
  if (errno != EEXIST && errno != ENOTEMPTY) throw_checkpoint_error(path_, "cannot be written: " + system_error());
  if (no_flags) throw_checkpoint_error(path_, kNoExchange);
  check_can_be_replaced(path_, existing_);
  // Both are there at each moment; the old one is then removed as what is temporary.
  if (!rename_with(RENAME_EXCHANGE))
    throw_checkpoint_error(path_, "cannot be replaced: " + system_error() + "; save under another name");
}

void CheckpointWriter::commit(const std::map<std::string, std::string>& info) {
  check_not_committed();
  write_manifest(info);
  check_complete();
  sync_directory(temporary_);
  put_into_place();
  committed_ = true;
  try {
    sync_directory(parent_);
  } catch (const CheckpointError& error) {
    throw_checkpoint_error(path_, std::string("was written, but may be gone after a power cut: ") + error.what());
  }
}

// ---- reading

namespace {

std::uint32_t parse_crc32(const std::string& shown, const std::string& name, const Json& value) {
  std::uint32_t number = 0;
  const std::string text = value.is_string() ? value.get<std::string>() : "";
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, 16);
  if (text.size() != 8 || error != std::errc() || end != text.data() + text.size())
    throw_checkpoint_error(shown, "the crc32 of '" + name + "' is not eight hexadecimal digits");
  return number;
}

}  // namespace

CheckpointReader::CheckpointReader(std::string path)
    : path_(without_slashes(std::move(path))), directory_(std::make_shared<OpenDirectory>(path_)) {
  const std::string shown = path_ + "/" + kManifest;
  const Json manifest = parse_manifest(*directory_ / kManifest, shown);
  for (const auto& [key, value] : manifest["info"].items()) {
    if (!value.is_string()) throw_checkpoint_error(shown, "info '" + key + "' is no text");
    info_[key] = value.get<std::string>();
  }
  for (const auto& [name, value] : manifest["files"].items()) {
    if (!is_name(name)) throw_checkpoint_error(shown, "'" + name + "' is no name of a checkpoint's file");
    if (!value.is_object() || !value.contains("bytes") || !value["bytes"].is_number_unsigned() ||
        !value.contains("crc32"))
      throw_checkpoint_error(shown, "'" + name + "' lacks bytes or crc32");
    const CheckpointFile file{value["bytes"].get<std::uint64_t>(), parse_crc32(shown, name, value["crc32"])};
    const std::uint64_t there = ReadFile(*directory_ / name, path_ + "/" + name).bytes();
    if (there != file.bytes)
      throw_checkpoint_error(path_ + "/" + name, "is cut off or too long: it has " + std::to_string(there) +
                                                     " bytes of " + std::to_string(file.bytes));
    files_[name] = file;
  }
}

std::string CheckpointReader::path_of(const std::string& name) const {
  find(name);
  return *directory_ / name;
}

std::vector<std::string> CheckpointReader::names() const {
  std::vector<std::string> names;
  for (const auto& [name, file] : files_) names.push_back(name);
  return names;
}

const CheckpointFile& CheckpointReader::find(const std::string& name) const {
  const auto found = files_.find(name);
  if (found == files_.end()) throw_checkpoint_error(path_, "the checkpoint has no file '" + name + "'");
  return found->second;
}

std::uint64_t CheckpointReader::bytes_of(const std::string& name) const { return find(name).bytes; }

// To nowhere, if `to` is null.
void CheckpointReader::read_checked(const std::string& name, char* to) const {
  const CheckpointFile& file = find(name);
  const std::string shown = path_ + "/" + name;
  const ReadFile source(*directory_ / name, shown);
  if (source.bytes() != file.bytes)
    throw_checkpoint_error(shown, "is damaged: it has " + std::to_string(source.bytes()) + " bytes, and had " +
                                      std::to_string(file.bytes) + " when it was written");
  const std::uint32_t crc = source.read_whole(to);
  if (crc != file.crc32)
    throw_checkpoint_error(
        shown, "is damaged: its crc32 is " + hex(crc) + ", and was " + hex(file.crc32) + " when it was written");
}

void CheckpointReader::read_to(const std::string& name, char* to) const { read_checked(name, to); }

std::string CheckpointReader::read(const std::string& name) const {
  std::string all(static_cast<std::size_t>(find(name).bytes), '\0');
  read_checked(name, all.data());
  return all;
}

void CheckpointReader::verify(const std::string& name) const { read_checked(name, nullptr); }

void CheckpointReader::verify() const {
  const auto all = names();
  in_threads(all.size(), [&](std::size_t i) { verify(all[i]); });
}

}  // namespace tandem::io
