#include "idx_file.h"

#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <limits>

#include "tandem/core/error.h"

namespace tandem::data {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kDeflateBound = 1032;  // deflate cannot expand more (zlib's technical notes)

[[noreturn]] void fail(const std::string& path, const std::string& problem) { throw DataError(path + ": " + problem); }

// Reads plain files as they are and gzipped ones unpacked (zlib tells them apart).
class Reader {
 public:
  explicit Reader(const std::string& path) : path_(path), file_(gzopen(path.c_str(), "rb")) {
    if (!file_) fail(path, std::string("cannot be opened: ") + std::strerror(errno));
    gzbuffer(file_, 1 << 18);
  }
  ~Reader() { gzclose(file_); }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  // Reads up to `size` bytes; fewer only at the end of the file.
  std::int64_t read(std::uint8_t* to, std::int64_t size) {
    std::int64_t done = 0;
    while (done < size) {
      const auto part = static_cast<unsigned>(std::min<std::int64_t>(size - done, 1 << 30));
      const int got = gzread(file_, to + done, part);
      if (got < 0) fail_damaged();
      if (got == 0) break;
      done += got;
    }
    return done;
  }

  // A gzip file that ends early reads like one that ends; only the error state tells.
  void check_no_error() {
    int code = Z_OK;
    gzerror(file_, &code);
    if (code != Z_OK) fail_damaged();
  }

 private:
  [[noreturn]] void fail_damaged() {
    int code = Z_OK;
    const std::string message = gzerror(file_, &code);
    if (code == Z_ERRNO) fail(path_, std::string("cannot be read: ") + std::strerror(errno));
    fail(path_, "is damaged or cut off (" + message + "); get the file again");
  }

  std::string path_;
  gzFile file_;
};

std::string find_file(const std::string& directory, const std::string& name) {
  std::error_code error;
  if (!fs::is_directory(directory, error))
    throw DataError("the data directory '" + directory + "' " +
                    (fs::exists(directory, error) ? "is no directory" : "does not exist"));
  const std::string plain = (fs::path(directory) / name).string();
  for (const std::string& path : {plain + ".gz", plain}) {
    if (!fs::exists(path, error)) continue;
    if (!fs::is_regular_file(path, error)) fail(path, "is no file");
    return path;
  }
  throw DataError("neither " + plain + ".gz nor " + plain + " exists; the directory must hold the four files of MNIST");
}

std::uint32_t big_endian(const std::uint8_t* bytes) {
  return std::uint32_t{bytes[0]} << 24 | std::uint32_t{bytes[1]} << 16 | std::uint32_t{bytes[2]} << 8 | bytes[3];
}

std::vector<std::int64_t> read_header(Reader& reader, const std::string& path, int dims) {
  std::vector<std::uint8_t> header(4 + 4 * static_cast<std::size_t>(dims));
  if (reader.read(header.data(), 4) != 4) fail(path, "is too short for an IDX file");
  const std::uint32_t magic = big_endian(header.data());
  const std::uint32_t expected = 0x800u + static_cast<std::uint32_t>(dims);
  if (magic != expected) {
    const bool other_idx = (magic & ~0xffu) == 0x800u;
    fail(path, other_idx ? "has " + std::to_string(magic & 0xff) + " dimensions instead of " + std::to_string(dims) +
                               "; are images and labels swapped?"
                         : "is no IDX file of bytes (magic number " + std::to_string(magic) + " instead of " +
                               std::to_string(expected) + ")");
  }
  const auto rest = static_cast<std::int64_t>(header.size()) - 4;
  if (reader.read(header.data() + 4, rest) != rest) fail(path, "is cut off in its header");
  std::vector<std::int64_t> sizes;
  for (int dim = 0; dim < dims; ++dim) sizes.push_back(big_endian(header.data() + 4 + 4 * dim));
  return sizes;
}

// Bytes of one item, and a check that the file can hold all of them, before anything is allocated.
std::int64_t checked_item_bytes(const std::string& path, const std::vector<std::int64_t>& sizes) {
  std::error_code error;
  const auto file_bytes = static_cast<std::int64_t>(fs::file_size(path, error));
  if (error) fail(path, "cannot be read: " + error.message());
  const std::int64_t most = file_bytes > std::numeric_limits<std::int64_t>::max() / kDeflateBound
                                ? std::numeric_limits<std::int64_t>::max()
                                : file_bytes * kDeflateBound;
  std::int64_t item = 1;
  std::int64_t total = sizes[0];
  for (std::size_t dim = 1; dim < sizes.size(); ++dim) {
    if (sizes[dim] == 0) fail(path, "has a dimension of size 0 in its header");
    item *= sizes[dim];  // at most 2^64 for two dimensions of 2^32; caught below by the same bound
    if (item <= 0 || item > most) total = -1;
    if (total < 0 || total > most / sizes[dim]) fail(path, "says in its header that it holds more than it can");
    total *= sizes[dim];
  }
  if (total > most) fail(path, "says in its header that it holds more than it can");
  return item;
}

}  // namespace

IdxFile read_idx(const std::string& directory, const std::string& name, int dims, std::optional<std::int64_t> limit) {
  IdxFile file;
  file.path = find_file(directory, name);
  Reader reader(file.path);
  file.sizes = read_header(reader, file.path, dims);
  const std::int64_t item = checked_item_bytes(file.path, file.sizes);
  file.items = std::min(file.sizes[0], limit.value_or(file.sizes[0]));
  const std::int64_t wanted = file.items * item;
  file.bytes = std::make_unique_for_overwrite<std::uint8_t[]>(static_cast<std::size_t>(wanted));
  const std::int64_t got = reader.read(file.bytes.get(), wanted);
  reader.check_no_error();
  if (got != wanted)
    fail(file.path, "is cut off: " + std::to_string(got) + " of " + std::to_string(wanted) + " bytes after the header");
  if (file.items < file.sizes[0]) return file;  // what follows is not wanted
  std::uint8_t beyond = 0;
  if (reader.read(&beyond, 1) != 0) fail(file.path, "is longer than its header says");
  reader.check_no_error();
  return file;
}

}  // namespace tandem::data
