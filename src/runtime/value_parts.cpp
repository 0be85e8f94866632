#include "tandem/runtime/detail/value_parts.h"

#include <functional>

#include "core/word_hash.h"

namespace tandem::detail {

void CollectParts::add(std::uint64_t word) {
  WordHash hash(parts_.structure);
  hash.add(word);
  parts_.structure = hash.value();
}

void CollectParts::begin(char kind, std::size_t parts) {
  add(static_cast<std::uint64_t>(kind));
  add(parts);
}

void CollectParts::key(const std::string& key) { add(std::hash<std::string>()(key)); }

void CollectParts::end() { add(0); }

void CollectParts::tensor(at::Tensor& tensor) {
  add(tensor.defined() ? 1 : 2);
  if (tensor.defined()) parts_.tensors.push_back(tensor);
}

bool CollectParts::numbers(Numbers& numbers) {
  add(numbers.row ? 3 : 4);
  add(std::hash<std::string>()(numbers.type));
  parts_.numbers.push_back(numbers);
  return false;
}

void DescribeParts::separate() {
  if (!text_.empty() && std::string("([{").find(text_.back()) == std::string::npos &&
      (text_.size() < 2 || text_.substr(text_.size() - 2) != ": "))
    text_ += ", ";
}

void DescribeParts::begin(char kind, std::size_t) {
  separate();
  text_ += kind;
  closing_ += kind == '(' ? ')' : kind == '[' ? ']' : '}';
}

void DescribeParts::key(const std::string& key) {
  separate();
  text_ += key + ": ";
}

void DescribeParts::end() {
  text_ += closing_.back();
  closing_.pop_back();
}

void DescribeParts::tensor(at::Tensor& tensor) {
  separate();
  if (!tensor.defined()) {
    text_ += "an undefined tensor";
    return;
  }
  text_ += c10::str(tensor.scalar_type(), tensor.sizes());
  if (!tensor.is_cpu()) text_ += " on " + c10::str(tensor.device().type());
}

bool DescribeParts::numbers(Numbers& numbers) {
  separate();
  text_ += numbers.type;
  if (numbers.row) text_ += " x " + std::to_string(numbers.values.size());
  return false;
}

}  // namespace tandem::detail
