#include "io/ivalue_tensors.h"

#include <utility>
#include <vector>

namespace tandem::io {

c10::IValue map_tensors(const c10::IValue& value, const std::function<at::Tensor(const at::Tensor&)>& change) {
  if (value.isTensor()) return change(value.toTensor());
  if (value.isTuple()) {
    std::vector<c10::IValue> items;
    for (const c10::IValue& item : value.toTupleRef().elements()) items.push_back(map_tensors(item, change));
    return c10::ivalue::Tuple::create(std::move(items));
  }
  if (value.isList()) {
    c10::impl::GenericList items(c10::AnyType::get());
    for (const c10::IValue& item : value.toListRef()) items.push_back(map_tensors(item, change));
    return items;
  }
  if (value.isGenericDict()) {
    c10::impl::GenericDict items(c10::AnyType::get(), c10::AnyType::get());
    for (const auto& item : value.toGenericDict()) items.insert(item.key(), map_tensors(item.value(), change));
    return items;
  }
  return value;
}

}  // namespace tandem::io
