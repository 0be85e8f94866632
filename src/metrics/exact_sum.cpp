#include "tandem/metrics/exact_sum.h"

#include <cmath>
#include <cstdint>

#include <ATen/Functions.h>

#include "tandem/core/error.h"

namespace tandem::metrics {
namespace {

// Digits of 32 bits, the lowest first; digit 0 counts units of 2^-1074, the smallest double. Between additions they are
// in [0, 2^32) but for the last, which has the sign. The largest double ends in digit 65.
constexpr std::int64_t kDigits = 68;
constexpr int kLowest = -1074;
constexpr std::int64_t kBase = std::int64_t{1} << 32, kMask = kBase - 1;
constexpr std::int64_t kAdditionsUntilCarry = 1 << 30;

void carry(std::int64_t* digits) {
  for (std::int64_t i = 0; i + 1 < kDigits; ++i) {
    digits[i + 1] += digits[i] >> 32;
    digits[i] &= kMask;
  }
}

void add(std::int64_t* digits, double value) {
  int exponent = 0;
  const auto mantissa = static_cast<std::int64_t>(std::ldexp(std::frexp(value, &exponent), 53));
  if (mantissa == 0) return;
  int place = exponent - 53 - kLowest;
  std::uint64_t magnitude = static_cast<std::uint64_t>(mantissa < 0 ? -mantissa : mantissa);
  if (place < 0) {  // a subnormal number ends in zeros
    magnitude >>= -place;
    place = 0;
  }
  const int shift = place % 32;
  std::int64_t* const digit = digits + place / 32;
  const std::uint64_t low = (magnitude & kMask) << shift, high = (magnitude >> 32) << shift;
  const std::int64_t sign = mantissa < 0 ? -1 : 1;
  digit[0] += sign * static_cast<std::int64_t>(low & kMask);
  digit[1] += sign * static_cast<std::int64_t>((low >> 32) + (high & kMask));
  digit[2] += sign * static_cast<std::int64_t>(high >> 32);
}

bool bit(const std::int64_t* digits, std::int64_t place) { return (digits[place / 32] >> (place % 32) & 1) != 0; }

}  // namespace

at::Tensor exact_zero() { return at::zeros({kDigits}, at::kLong); }

void exact_add(at::Tensor& sum, const at::Tensor& values) {
  const at::Tensor numbers = values.detach().to(at::kCPU, at::kDouble).contiguous();
  if (!at::isfinite(numbers).all().item<bool>()) throw DataError("a sum of numbers has one that is infinite or NaN");
  const double* const number = numbers.const_data_ptr<double>();
  auto* const digits = sum.mutable_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < numbers.numel(); ++i) {
    add(digits, number[i]);
    if ((i + 1) % kAdditionsUntilCarry == 0) carry(digits);
  }
  carry(digits);
}

double exact_value(const at::Tensor& sum) {
  at::Tensor own = sum.clone();
  auto* const digits = own.mutable_data_ptr<std::int64_t>();
  carry(digits);
  const bool negative = digits[kDigits - 1] < 0;
  if (negative) {
    own.neg_();
    carry(digits);
  }
  const double sign = negative ? -1 : 1;
  std::int64_t top = kDigits * 32 - 1;
  while (top >= 0 && !bit(digits, top)) --top;
  // The 53 bits from the top, rounded to even by those below.
  const std::int64_t lowest = top < 53 ? 0 : top - 52;
  std::int64_t mantissa = 0;
  for (std::int64_t place = top; place >= lowest; --place) mantissa = mantissa * 2 + (bit(digits, place) ? 1 : 0);
  if (lowest > 0 && bit(digits, lowest - 1)) {
    bool more = false;
    for (std::int64_t place = lowest - 2; place >= 0 && !more; --place) more = bit(digits, place);
    if (more || mantissa % 2 != 0) mantissa += 1;
  }
  return sign * std::ldexp(static_cast<double>(mantissa), static_cast<int>(lowest) + kLowest);
}

}  // namespace tandem::metrics
