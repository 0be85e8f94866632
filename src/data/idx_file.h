#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace tandem::data {

/// The bytes of an IDX file (http://yann.lecun.com/exdb/mnist: magic 0x0000 08 dims, big-endian sizes, then unsigned
/// bytes), plain or gzipped.
struct IdxFile {
  std::string path;                 ///< the file that was read
  std::vector<std::int64_t> sizes;  ///< as its header says, whatever the limit
  std::int64_t items = 0;           ///< along dim 0 that were read
  std::unique_ptr<std::uint8_t[]> bytes;
};

/// Reads `directory`/`name`, or that with .gz. `dims` is the number of dimensions it must have; of the first,
/// at most `limit` items are read. Throws DataError when the file is missing, unreadable, of another kind, shorter or
/// longer than its header says, or damaged.
IdxFile read_idx(const std::string& directory, const std::string& name, int dims, std::optional<std::int64_t> limit);

}  // namespace tandem::data
