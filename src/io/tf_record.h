#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace tandem::io {

/// CRC-32C (Castagnoli), as in RFC 3720. zlib has the other polynomial only.
std::uint32_t crc32c(std::string_view bytes);

/// `data` as a record of TensorFlow's files: uint64 length, its masked crc, data, its masked crc, little-endian.
std::string tf_record(std::string_view data);

}  // namespace tandem::io
