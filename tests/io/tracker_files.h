// What the trackers' files hold.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "support/file_bytes.h"
#include "tandem/io/file_trackers.h"
#include "tandem/io/tracker_set.h"

namespace tandem::test {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();
inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

inline std::vector<std::string> lines_of(const std::string& path) {
  std::vector<std::string> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

inline std::vector<Json> json_lines_of(const std::string& path) {
  std::vector<Json> objects;
  for (const std::string& line : lines_of(path)) objects.push_back(Json::parse(line));
  return objects;
}

/// TensorBoard's file; empty: there is none.
inline std::string event_file_in(const std::string& directory) {
  for (const auto& entry : fs::directory_iterator(directory))
    if (entry.path().filename().string().starts_with("events.out.tfevents.")) return entry.path();
  return "";
}

/// CRC-32C by its definition, bit by bit.
inline std::uint32_t reference_crc32c(std::string_view bytes) {
  std::uint32_t crc = 0xFFFFFFFFu;
  for (const char c : bytes) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ ((crc & 1) != 0 ? 0x82F63B78u : 0);
  }
  return ~crc;
}

/// The data of the records in the bytes of a TensorBoard file; throws where they are not whole ones.
inline std::vector<std::string> records_in(const std::string& file) {
  std::size_t at = 0;
  const auto take = [&](std::size_t size) {
    if (file.size() - at < size) throw std::runtime_error("a record is cut off");
    at += size;
    return file.substr(at - size, size);
  };
  const auto check = [](const std::string& bytes, const std::string& stored) {
    const std::uint32_t masked = std::rotr(reference_crc32c(bytes), 15) + 0xA282EAD8u;
    if (std::memcmp(&masked, stored.data(), 4) != 0) throw std::runtime_error("a crc is wrong");
  };
  std::vector<std::string> records;
  while (at < file.size()) {
    const std::string length = take(8);
    check(length, take(4));
    std::uint64_t size = 0;
    std::memcpy(&size, length.data(), 8);
    records.push_back(take(size));
    check(records.back(), take(4));
  }
  return records;
}

inline std::vector<std::string> records_of(const std::string& path) { return records_in(bytes_of(path)); }

/// The beginning of such bytes, up to the last record that is there as a whole, by the records' lengths.
inline std::string without_cut_record(const std::string& file) {
  std::size_t at = 0;
  while (file.size() - at >= 8) {
    std::uint64_t size = 0;
    std::memcpy(&size, file.data() + at, 8);
    if (file.size() - at < 16 + size) break;
    at += 16 + size;
  }
  return file.substr(0, at);
}

/// Adds a tracker of each format.
inline void add_all(io::TrackerSet& trackers, const std::string& directory) {
  trackers.add(io::json_lines_tracker(directory));
  trackers.add(io::csv_tracker(directory));
  trackers.add(io::tensorboard_tracker(directory));
}

}  // namespace tandem::test
