#include "element_diff.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>

#include <c10/util/BFloat16.h>
#include <c10/util/Float8_e4m3fn.h>
#include <c10/util/Float8_e4m3fnuz.h>
#include <c10/util/Float8_e5m2.h>
#include <c10/util/Float8_e5m2fnuz.h>
#include <c10/util/Float8_e8m0fnu.h>
#include <c10/util/Half.h>
#include <c10/util/bit_cast.h>

namespace tandem_tool {
namespace {

enum class NumberKind { floating, signed_integer, unsigned_integer, boolean, bits };

// How the bits of one number are read.
struct Format {
  NumberKind kind = NumberKind::bits;
  std::size_t bytes = 1;
  std::uint64_t infinity = 0;  // of a floating one: larger magnitudes are NaN
  bool has_sign = true;        // the highest bit
  bool nan_is_minus_zero = false;
  std::string (*show)(std::uint64_t bits) = nullptr;
};

template <class Number>
std::string digits(Number number) {
  std::array<char, 64> text;
  return {text.data(), std::to_chars(text.data(), text.data() + text.size(), number).ptr};
}

std::string hexadecimal(std::uint64_t bits, std::size_t bytes) {
  std::array<char, 32> text;
  std::snprintf(text.data(), text.size(), "0x%0*llx", static_cast<int>(2 * bytes),
                static_cast<unsigned long long>(bits));
  return text.data();
}

std::string show_double(std::uint64_t bits) { return digits(c10::bit_cast<double>(bits)); }
std::string show_float(std::uint64_t bits) { return digits(c10::bit_cast<float>(static_cast<std::uint32_t>(bits))); }

// Every number of a small type is one of float's.
template <class Small, class Bits>
std::string show_small(std::uint64_t bits) {
  return digits(static_cast<float>(Small(static_cast<Bits>(bits), Small::from_bits())));
}

Format signed_integer(std::size_t bytes) { return {.kind = NumberKind::signed_integer, .bytes = bytes}; }
Format unsigned_integer(std::size_t bytes) { return {.kind = NumberKind::unsigned_integer, .bytes = bytes}; }

// Of a real type; types of LibTorch's that are no numbers are bytes.
Format format_of(at::ScalarType type) {
  using Type = at::ScalarType;
  using Byte = std::uint8_t;
  const auto floating = [](std::size_t bytes, std::uint64_t infinity, std::string (*show)(std::uint64_t)) {
    return Format{.kind = NumberKind::floating, .bytes = bytes, .infinity = infinity, .show = show};
  };
  Format format;
  switch (type) {
    case Type::Double: return floating(8, 0x7ff0000000000000, show_double);
    case Type::Float: return floating(4, 0x7f800000, show_float);
    case Type::Half: return floating(2, 0x7c00, show_small<c10::Half, std::uint16_t>);
    case Type::BFloat16: return floating(2, 0x7f80, show_small<c10::BFloat16, std::uint16_t>);
    case Type::Float8_e5m2: return floating(1, 0x7c, show_small<c10::Float8_e5m2, Byte>);
    case Type::Float8_e4m3fn: return floating(1, 0x7e, show_small<c10::Float8_e4m3fn, Byte>);
    case Type::Float8_e5m2fnuz: format = floating(1, 0x7f, show_small<c10::Float8_e5m2fnuz, Byte>); break;
    case Type::Float8_e4m3fnuz: format = floating(1, 0x7f, show_small<c10::Float8_e4m3fnuz, Byte>); break;
    case Type::Float8_e8m0fnu:
      format = floating(1, 0xfe, show_small<c10::Float8_e8m0fnu, Byte>);
      format.has_sign = false;
      return format;
    case Type::Bool: return {.kind = NumberKind::boolean};
    case Type::Byte: return unsigned_integer(1);
    case Type::UInt16: return unsigned_integer(2);
    case Type::UInt32: return unsigned_integer(4);
    case Type::UInt64: return unsigned_integer(8);
    case Type::Char: return signed_integer(1);
    case Type::Short: return signed_integer(2);
    case Type::Int: return signed_integer(4);
    case Type::Long: return signed_integer(8);
    default: return format;
  }
  format.nan_is_minus_zero = true;  // those of "fnuz", which have one NaN and no -0
  return format;
}

std::uint64_t bits_at(const void* elements, std::size_t index, std::size_t bytes) {
  std::uint64_t bits = 0;  // this machine, as files, has the low bytes first
  std::memcpy(&bits, static_cast<const char*>(elements) + index * bytes, bytes);
  return bits;
}

std::uint64_t sign_of(const Format& format) { return format.has_sign ? std::uint64_t{1} << (8 * format.bytes - 1) : 0; }

bool is_nan(const Format& format, std::uint64_t bits) {
  if (format.nan_is_minus_zero) return bits == sign_of(format);
  return (bits & ~sign_of(format)) > format.infinity;
}

std::int64_t extended(std::uint64_t bits, std::size_t bytes) {
  const auto unused = static_cast<int>(8 * (8 - bytes));
  return static_cast<std::int64_t>(bits << unused) >> unused;
}

// Neighbours have neighbouring places.
std::int64_t place_of(const Format& format, std::uint64_t bits) {
  const std::uint64_t sign = sign_of(format);
  const auto magnitude = static_cast<std::int64_t>(bits & ~sign);
  return (bits & sign) != 0 ? -magnitude : magnitude;
}

std::uint64_t between(std::int64_t a, std::int64_t b) {
  return static_cast<std::uint64_t>(std::max(a, b)) - static_cast<std::uint64_t>(std::min(a, b));
}

std::optional<std::uint64_t> distance(const Format& format, std::uint64_t a, std::uint64_t b) {
  switch (format.kind) {
    case NumberKind::floating:
      if (is_nan(format, a) || is_nan(format, b)) return {};
      return between(place_of(format, a), place_of(format, b));
    case NumberKind::signed_integer: return between(extended(a, format.bytes), extended(b, format.bytes));
    case NumberKind::unsigned_integer: return std::max(a, b) - std::min(a, b);
    default: return {};
  }
}

std::string shown(const Format& format, std::uint64_t bits) {
  switch (format.kind) {
    case NumberKind::floating:
      return is_nan(format, bits) ? "nan (" + hexadecimal(bits, format.bytes) + ")" : format.show(bits);
    case NumberKind::signed_integer: return std::to_string(extended(bits, format.bytes));
    case NumberKind::unsigned_integer: return std::to_string(bits);
    case NumberKind::boolean:
      if (bits <= 1) return bits == 1 ? "true" : "false";
      [[fallthrough]];
    default: return hexadecimal(bits, format.bytes);
  }
}

}  // namespace

std::optional<ElementDifference> compare_elements(const void* first, const void* second, std::size_t bytes,
                                                  std::optional<at::ScalarType> type) {
  if (bytes == 0 || std::memcmp(first, second, bytes) == 0) return {};
  const bool complex = type && at::isComplexType(*type);
  const Format format = !type ? Format() : format_of(complex ? c10::toRealValueType(*type) : *type);
  const std::size_t parts = complex ? 2 : 1, numbers = bytes / format.bytes;
  ElementDifference difference{.in_ulps = format.kind == NumberKind::floating,
                               .elements = static_cast<std::int64_t>(numbers / parts)};
  std::int64_t last = -1;
  for (std::size_t i = 0; i < numbers; ++i) {
    const std::uint64_t a = bits_at(first, i, format.bytes), b = bits_at(second, i, format.bytes);
    if (a == b) continue;
    const auto apart = distance(format, a, b);
    const auto element = static_cast<std::int64_t>(i / parts);
    if (last < 0) {
      difference.index = element;
      difference.part = complex ? (i % 2 == 0 ? ".real" : ".imag") : "";
      difference.first = shown(format, a);
      difference.second = shown(format, b);
      difference.distance = apart;
    }
    if (apart) difference.most = std::max(difference.most.value_or(0), *apart);
    difference.different += element != last ? 1 : 0;
    last = element;
  }
  return difference;
}

}  // namespace tandem_tool
