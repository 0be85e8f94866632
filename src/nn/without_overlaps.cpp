#include "nn/without_overlaps.h"

#include <cstdint>
#include <functional>
#include <iterator>
#include <map>

#include <ATen/EmptyTensor.h>

namespace tandem::nn {
namespace {

struct Span {
  const char* end;
  bool full;  // all of its bytes are the tensor's
};
using Spans = std::map<const char*, Span, std::less<>>;  // by where they begin; none has a part of another

enum class Place : std::uint8_t { beside, within, across };

Place place_among(const Spans& spans, const char* begin, const char* end) {
  const auto after = spans.lower_bound(end);
  if (after == spans.begin()) return Place::beside;
  const auto& [start, span] = *std::prev(after);
  if (span.end <= begin) return Place::beside;
  return span.full && start <= begin && end <= span.end ? Place::within : Place::across;
}

}  // namespace

std::vector<std::vector<at::Tensor>> without_overlaps(const std::vector<at::Tensor>& tensors) {
  std::vector<std::vector<at::Tensor>> lists;
  std::vector<Spans> spans;  // of the lists
  for (const at::Tensor& tensor : tensors) {
    if (tensor.numel() == 0) continue;
    const auto* const begin = static_cast<const char*>(tensor.const_data_ptr());
    const char* const end =
        begin + at::detail::computeStorageNbytes(tensor.sizes(), tensor.strides(), tensor.element_size());
    std::size_t list = 0;
    Place place = Place::beside;
    while (list < lists.size() && (place = place_among(spans[list], begin, end)) == Place::across) list += 1;
    if (list < lists.size() && place == Place::within) continue;
    if (list == lists.size()) {
      lists.emplace_back();
      spans.emplace_back();
    }
    lists[list].push_back(tensor);
    spans[list].emplace(begin, Span{end, tensor.is_non_overlapping_and_dense()});
  }
  return lists;
}

}  // namespace tandem::nn
