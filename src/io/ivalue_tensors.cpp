#include "io/ivalue_tensors.h"

#include <cstddef>
#include <utility>
#include <vector>

#include "tandem/core/error.h"

namespace tandem::io {
namespace {

class TensorMap {
 public:
  explicit TensorMap(const std::function<at::Tensor(const at::Tensor&)>& change) : change_(change) {}

  c10::IValue operator()(const c10::IValue& value) {
    // Values can share parts, so that a small file can have endlessly many.
    if (++visited_ > kMostValues) throw CheckpointError("a value has more parts than any training's state");
    if (value.isTensor()) return change_(value.toTensor());
    if (value.isTuple()) {
      std::vector<c10::IValue> items;
      for (const c10::IValue& item : value.toTupleRef().elements()) items.push_back((*this)(item));
      return c10::ivalue::Tuple::create(std::move(items));
    }
    if (value.isList()) {
      c10::impl::GenericList items(c10::AnyType::get());
      for (const c10::IValue& item : value.toListRef()) items.push_back((*this)(item));
      return items;
    }
    if (value.isGenericDict()) {
      c10::impl::GenericDict items(c10::AnyType::get(), c10::AnyType::get());
      for (const auto& item : value.toGenericDict()) items.insert(item.key(), (*this)(item.value()));
      return items;
    }
    return value;
  }

 private:
  static constexpr std::size_t kMostValues = 10'000'000;

  const std::function<at::Tensor(const at::Tensor&)>& change_;
  std::size_t visited_ = 0;
};

}  // namespace

c10::IValue map_tensors(const c10::IValue& value, const std::function<at::Tensor(const at::Tensor&)>& change) {
  return TensorMap(change)(value);
}

}  // namespace tandem::io
