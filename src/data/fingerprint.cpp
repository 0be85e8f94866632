#include "tandem/data/detail/fingerprint.h"

#include <algorithm>
#include <cstring>

#include "core/word_hash.h"

namespace tandem::data::detail {

std::uint64_t fingerprint_of(const std::vector<at::Tensor*>& tensors) {
  WordHash hash;
  for (const at::Tensor* const tensor : tensors) {
    const at::Tensor row = tensor->detach().cpu().contiguous();
    hash.add(static_cast<std::uint64_t>(row.scalar_type()));
    for (const std::int64_t size : row.sizes()) hash.add(static_cast<std::uint64_t>(size));
    const auto* const bytes = static_cast<const char*>(row.const_data_ptr());
    for (std::size_t at = 0; at < row.nbytes(); at += sizeof(std::uint64_t)) {
      std::uint64_t word = 0;
      std::memcpy(&word, bytes + at, std::min(sizeof word, row.nbytes() - at));
      hash.add(word);
    }
  }
  return std::max<std::uint64_t>(hash.value(), 1);
}

std::vector<std::size_t> some_of(std::size_t size) {
  constexpr std::size_t kParts = 4;
  std::vector<std::size_t> some;
  for (std::size_t part = 0; part <= kParts && size > 0; ++part) some.push_back((size - 1) * part / kParts);
  some.erase(std::unique(some.begin(), some.end()), some.end());
  return some;
}

}  // namespace tandem::data::detail
