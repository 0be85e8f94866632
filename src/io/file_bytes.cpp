#include "io/file_bytes.h"

#include <cstring>

#include <ATen/Functions.h>
#include <c10/util/Exception.h>

#include "tandem/core/error.h"

namespace tandem::io {

at::Tensor room_for(std::uint64_t bytes, const std::string& shown) {
  try {
    // Not in huge pages: a virtual machine gives those that are free back to its host, and waits for them at the first
    // write (1.2 GB: 0.56 s in small pages; 0.13 s in huge ones that it still had, 2.9 s in others).
    return at::empty(static_cast<std::int64_t>(bytes), at::kByte);
  } catch (const c10::Error&) {
    throw CheckpointError(shown + ": there is no memory for its " + std::to_string(bytes) + " bytes");
  }
}

void check_is_archive(const std::string& path, const std::string& shown) {
  const ReadFile file(path, shown);
  char first[4] = {};
  if (file.read(first, sizeof first) != sizeof first || std::memcmp(first, "PK\3\4", sizeof first) != 0)
    throw CheckpointError(shown + ": is no file of torch.save, or damaged: it does not begin as a zip archive");
}

at::Tensor load_bytes(const std::string& path, const std::string& shown, Links links) {
  const ReadFile file(path, shown, links);
  at::Tensor bytes = room_for(file.bytes(), shown);
  file.read_whole(static_cast<char*>(bytes.mutable_data_ptr()));
  return bytes;
}

at::Tensor part_of(const at::Tensor& file, std::uint64_t begin, std::uint64_t bytes, std::uint64_t element_bytes) {
  const auto first = static_cast<std::int64_t>(begin), size = static_cast<std::int64_t>(bytes);
  if (begin % element_bytes != 0) return file.narrow(0, first, size).clone();
  return at::empty({0}, at::kByte).set_(file.storage(), first, {size}, {1});
}

}  // namespace tandem::io
