#include "tandem/io/checkpoint_series.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <utility>

#include "io/file_writer.h"
#include "tandem/core/error.h"

namespace tandem::io {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "checkpoint_";
constexpr const char* kLatest = "latest";
constexpr const char* kRemoving = ".tandem-removing-";

[[noreturn]] void fail(const std::string& path, const std::string& problem) {
  throw CheckpointError(path + ": " + problem);
}

// The number in the name of a checkpoint.
std::optional<std::int64_t> number_of(std::string_view name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  name.remove_prefix(kPrefix.size());
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
  const bool is_number = error == std::errc() && end == name.data() + name.size() && name.front() != '-';
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

void point_latest(const std::string& directory, const std::string& name) {
  const std::string link = directory + "/" + kLatest, temporary = link + ".tmp-" + std::to_string(::getpid());
  std::error_code error;
  // Somebody's own file of that name stays.
  if (const auto status = fs::symlink_status(link, error); fs::exists(status) && !fs::is_symlink(status)) return;
  ::unlink(temporary.c_str());
  if (::symlink(name.c_str(), temporary.c_str()) == 0 && ::rename(temporary.c_str(), link.c_str()) == 0) return;
  const bool knows_no_links = errno == EPERM || errno == EOPNOTSUPP || errno == ENOSYS;
  if (!knows_no_links) fail(link, "cannot be made a link to " + name + ", which was written: " + system_error());
}

// A kill in the middle leaves no half of a checkpoint under its name.
void remove(const std::string& directory, const std::string& checkpoint) {
  const std::string going = directory + "/" + kRemoving + fs::path(checkpoint).filename().string();
  std::error_code error;
  fs::remove_all(going, error);
  if (::rename(checkpoint.c_str(), going.c_str()) != 0) fail(checkpoint, "cannot be removed: " + system_error());
  fs::remove_all(going, error);
  if (error) fail(going, "cannot be removed: " + error.message());
}

void remove_left_over(const std::string& directory) {
  std::error_code error, ignored;
  for (auto entry = fs::directory_iterator(directory, error); !error && entry != fs::directory_iterator();
       entry.increment(error))
    if (entry->path().filename().string().starts_with(kRemoving)) fs::remove_all(entry->path(), ignored);
}

}  // namespace

std::vector<std::string> list_checkpoints(const std::string& directory) {
  std::vector<std::string> paths;
  std::error_code error;
  for (Numbered& one : numbered(directory))
    if (fs::exists(one.path + "/manifest.json", error)) paths.push_back(std::move(one.path));
  return paths;
}

std::string next_checkpoint(const std::string& directory) {
  std::error_code error;
  fs::create_directories(directory, error);
  if (error) fail(directory, "cannot be made: " + error.message());
  const auto all = numbered(directory);
  const std::int64_t next = all.empty() ? 0 : all.back().number + 1;
  return directory + "/" + std::string(kPrefix) + std::to_string(next);
}

void finish_checkpoint(const std::string& directory, const std::string& checkpoint,
                       std::optional<std::int64_t> total_limit) {
  const std::string name = fs::path(checkpoint).filename().string();
  point_latest(directory, name);  // before the one goes that it was
  remove_left_over(directory);
  auto others = list_checkpoints(directory);
  std::erase_if(others, [&](const std::string& path) { return fs::path(path).filename() == name; });
  const auto kept = static_cast<std::size_t>(std::max<std::int64_t>(total_limit.value_or(0), 1)) - 1;
  for (std::size_t i = 0; total_limit && i + kept < others.size(); ++i) remove(directory, others[i]);
}

}  // namespace tandem::io
