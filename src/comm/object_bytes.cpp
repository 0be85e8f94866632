#include "tandem/comm/object_bytes.h"

#include <cstring>

#include <torch/csrc/jit/serialization/pickle.h>

#include "tandem/core/error.h"

namespace tandem::comm::detail {
namespace {

[[noreturn]] void fail() { throw CollectiveError("another rank sent bytes that are not those of the object"); }

}  // namespace

std::string_view take_bytes(std::string_view& bytes, std::size_t size) {
  if (size > bytes.size()) fail();
  const std::string_view taken = bytes.substr(0, size);
  bytes.remove_prefix(size);
  return taken;
}

std::size_t take_count(std::string_view& bytes, std::size_t least) {
  std::uint64_t count = 0;
  std::memcpy(&count, take_bytes(bytes, sizeof count).data(), sizeof count);
  if (count > bytes.size() / least) fail();
  return count;
}

void add_count(std::string& bytes, std::size_t count) {
  const std::uint64_t number = count;
  bytes.append(reinterpret_cast<const char*>(&number), sizeof number);
}

void check_taken(std::string_view bytes) {
  if (!bytes.empty()) fail();
}

// LibTorch pickles no undefined tensor.
void add_value(std::string& bytes, const c10::IValue& value) {
  if (value.isTensor() && !value.toTensor().defined()) return add_count(bytes, 0);
  if (value.isTensor() && !value.toTensor().is_cpu()) return add_value(bytes, value.toTensor().cpu());
  const std::vector<char> pickled = torch::jit::pickle_save(value);
  add_count(bytes, pickled.size());
  bytes.append(pickled.data(), pickled.size());
}

c10::IValue take_value(std::string_view& bytes) {
  const std::string_view pickled = take_bytes(bytes, take_count(bytes, 1));
  if (pickled.empty()) return at::Tensor();
  return torch::jit::pickle_load({pickled.begin(), pickled.end()});
}

}  // namespace tandem::comm::detail
