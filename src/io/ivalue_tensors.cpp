#include "io/ivalue_tensors.h"

#include <unordered_map>
#include <utility>
#include <vector>

namespace tandem::io {
namespace {

class TensorMap {
 public:
  explicit TensorMap(const std::function<at::Tensor(const at::Tensor&)>& change) : change_(change) {}

  c10::IValue operator()(const c10::IValue& value) {
    if (value.isTensor()) return change_(value.toTensor());
    if (!value.isTuple() && !value.isList() && !value.isGenericDict()) return value;
    const void* const container = value.internalToPointer();
    if (const auto known = made_.find(container); known != made_.end()) return known->second;
    const c10::IValue made = contents_of(value);
    made_.emplace(container, made);
    return made;
  }

 private:
  c10::IValue contents_of(const c10::IValue& value) {
    if (value.isTuple()) {
      std::vector<c10::IValue> items;
      for (const c10::IValue& item : value.toTupleRef().elements()) items.push_back((*this)(item));
      return c10::ivalue::Tuple::create(std::move(items));
    }
    if (value.isGenericDict()) {
      c10::impl::GenericDict items(c10::AnyType::get(), c10::AnyType::get());
      for (const auto& item : value.toGenericDict()) items.insert(item.key(), (*this)(item.value()));
      return items;
    }
    c10::impl::GenericList items(c10::AnyType::get());
    for (const c10::IValue& item : value.toListRef()) items.push_back((*this)(item));
    return items;
  }

  const std::function<at::Tensor(const at::Tensor&)>& change_;
  // Containers can share parts, so that a small file can have endlessly many.
  std::unordered_map<const void*, c10::IValue> made_;
};

}  // namespace

c10::IValue map_tensors(const c10::IValue& value, const std::function<at::Tensor(const at::Tensor&)>& change) {
  return TensorMap(change)(value);
}

}  // namespace tandem::io
