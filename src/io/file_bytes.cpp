#include "io/file_bytes.h"

#include <string_view>

#include <ATen/Functions.h>
#include <c10/util/Exception.h>

#include "io/old_pickle_file.h"
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

namespace {

// The first bytes, in which formats can be told from each other.
std::string begin_of(const std::string& path, const std::string& shown, Links links) {
  const ReadFile file(path, shown, links);
  std::string begin(512, '\0');
  begin.resize(file.read(begin.data(), begin.size()));
  return begin;
}

bool is_of_torch_save(std::string_view begin) { return begin.starts_with("PK\3\4") || is_of_old_format(begin); }

}  // namespace

bool is_pickle_file(const std::string& path, const std::string& shown) {
  return is_of_torch_save(begin_of(path, shown, Links::follow));
}

void check_is_pickle_file(const std::string& path, const std::string& shown, Links links) {
  const std::string begin = begin_of(path, shown, links);
  if (is_of_torch_save(begin)) return;
  if (begin.size() > 262 && begin.substr(257, 5) == "ustar")
    throw CheckpointError(shown +
                          ": is a tar archive, as PyTorch before 0.1.10 wrote; load it with PyTorch's "
                          "torch.load and save it again with torch.save");
  throw CheckpointError(shown +
                        ": is no file of torch.save, or damaged: it begins neither as a zip archive nor as the "
                        "pickles that PyTorch wrote before 1.6");
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
