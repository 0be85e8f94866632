#include "io/numpy_pickle.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <utility>

#include <ATen/Functions.h>

#include "io/unpickle.h"

namespace tandem::io {
namespace {

constexpr std::array kTypes{
    std::pair{"b1", at::kBool},         std::pair{"i1", at::kChar},          std::pair{"i2", at::kShort},
    std::pair{"i4", at::kInt},          std::pair{"i8", at::kLong},          std::pair{"u1", at::kByte},
    std::pair{"u2", at::kUInt16},       std::pair{"u4", at::kUInt32},        std::pair{"u8", at::kUInt64},
    std::pair{"f2", at::kHalf},         std::pair{"f4", at::kFloat},         std::pair{"f8", at::kDouble},
    std::pair{"c8", at::kComplexFloat}, std::pair{"c16", at::kComplexDouble}};

at::ScalarType type_of(const NumpyType& type) {
  const auto* const found =
      std::find_if(kTypes.begin(), kTypes.end(), [&](const auto& one) { return type.name == one.first; });
  if (found == kTypes.end())
    throw UnpickleError("has a value of NumPy's of the type '" + type.name + "', which is no number that Tandem has");
  if (type.big_endian && c10::elementSize(found->second) > 1)
    throw UnpickleError("has a value of NumPy's with another order of bytes");
  return found->second;
}

template <class T>
T number(std::string_view bytes) {
  T value;
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

c10::IValue whole_number(std::uint64_t value) {
  if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
    throw UnpickleError("has a whole number of more than 64 bits");
  return static_cast<std::int64_t>(value);
}

}  // namespace

c10::IValue numpy_scalar(const NumpyType& type, std::string_view bytes) {
  const at::ScalarType scalar = type_of(type);
  if (bytes.size() != c10::elementSize(scalar))
    throw UnpickleError("has a number of NumPy's with too few or too many bytes");
  switch (scalar) {
    case at::kBool: return bytes[0] != 0;
    case at::kChar: return std::int64_t{number<std::int8_t>(bytes)};
    case at::kShort: return std::int64_t{number<std::int16_t>(bytes)};
    case at::kInt: return std::int64_t{number<std::int32_t>(bytes)};
    case at::kLong: return number<std::int64_t>(bytes);
    case at::kByte: return whole_number(number<std::uint8_t>(bytes));
    case at::kUInt16: return whole_number(number<std::uint16_t>(bytes));
    case at::kUInt32: return whole_number(number<std::uint32_t>(bytes));
    case at::kUInt64: return whole_number(number<std::uint64_t>(bytes));
    case at::kHalf: return double{float{number<c10::Half>(bytes)}};
    case at::kFloat: return double{number<float>(bytes)};
    case at::kDouble: return number<double>(bytes);
    case at::kComplexFloat: return c10::complex<double>(number<c10::complex<float>>(bytes));
    default: return number<c10::complex<double>>(bytes);
  }
}

at::Tensor numpy_array(const NumpyType& type, const std::vector<std::int64_t>& shape, bool fortran,
                       std::string_view bytes) {
  const at::ScalarType scalar = type_of(type);
  std::uint64_t needed = c10::elementSize(scalar);
  for (const std::int64_t size : shape)
    if (__builtin_mul_overflow(needed, static_cast<std::uint64_t>(size), &needed)) needed = bytes.size() + 1;
  if (needed != bytes.size()) throw UnpickleError("has an array of NumPy's with too few or too many bytes");
  std::vector<std::int64_t> sizes = shape;
  if (fortran) std::reverse(sizes.begin(), sizes.end());
  at::Tensor array = at::empty(sizes, scalar);
  if (!bytes.empty()) std::memcpy(array.mutable_data_ptr(), bytes.data(), bytes.size());
  if (!fortran) return array;
  std::vector<std::int64_t> order(shape.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int64_t>(order.size() - 1 - i);
  return array.permute(order);
}

}  // namespace tandem::io
