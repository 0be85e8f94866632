// What reductions do to single elements, on processors and on GPUs.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#define TANDEM_ANYWHERE __host__ __device__
#else
#define TANDEM_ANYWHERE
#endif

namespace tandem::comm::arithmetic {

struct BFloat16 {
  std::uint16_t bits;
};

struct Float16 {
  std::uint16_t bits;
};

struct Bool {
  std::uint8_t value;
};

// A product that is rounded before anything is added to it. Compilers make one rounding of both where a processor can,
// and GCC does so for some elements of a loop and not for others; even with -ffp-contract=off.
template <class T>
TANDEM_ANYWHERE T rounded_product(T a, T b) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) == sizeof(float))
    return __fmul_rn(a, b);
  else
    return __dmul_rn(a, b);
#else
  const volatile T product = a * b;
  return product;
#endif
}

// Complex numbers as LibTorch has them in memory, and multiplied as there. std::complex is not for GPUs, and looks for
// lost infinities after a product.
template <class T>
struct Complex {
  T real, imaginary;

  TANDEM_ANYWHERE friend Complex operator+(Complex a, Complex b) {
    return {a.real + b.real, a.imaginary + b.imaginary};
  }
  TANDEM_ANYWHERE friend Complex operator*(Complex a, Complex b) {
    return {rounded_product(a.real, b.real) - rounded_product(a.imaginary, b.imaginary),
            rounded_product(a.real, b.imaginary) + rounded_product(a.imaginary, b.real)};
  }
  TANDEM_ANYWHERE friend Complex operator/(Complex a, T divisor) { return {a.real / divisor, a.imaginary / divisor}; }
};

TANDEM_ANYWHERE inline float widen(BFloat16 value) { return std::bit_cast<float>(std::uint32_t{value.bits} << 16); }

// Rounds to nearest even; adding to the bits carries into the exponent as it should.
TANDEM_ANYWHERE inline BFloat16 narrow(float value, BFloat16) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return {static_cast<std::uint16_t>(value != value ? 0x7fc0 : rounded)};
}

#if defined(__CUDACC__)
TANDEM_ANYWHERE inline float widen(Float16 value) { return __half2float(std::bit_cast<__half>(value.bits)); }
TANDEM_ANYWHERE inline Float16 narrow(float value, Float16) {
  return {std::bit_cast<std::uint16_t>(__float2half_rn(value))};
}
#elif defined(__FLT16_MANT_DIG__)
TANDEM_ANYWHERE inline float widen(Float16 value) { return static_cast<float>(std::bit_cast<_Float16>(value.bits)); }
TANDEM_ANYWHERE inline Float16 narrow(float value, Float16) {
  return {std::bit_cast<std::uint16_t>(static_cast<_Float16>(value))};
}
#else
#error "the compiler has no _Float16; GCC 12 and later have it"
#endif

TANDEM_ANYWHERE inline std::uint8_t widen(Bool value) { return value.value; }
TANDEM_ANYWHERE inline Bool narrow(std::uint8_t value, Bool) { return {value}; }

template <class Element>
TANDEM_ANYWHERE inline Element widen(Element value) {
  return value;
}
template <class Element>
TANDEM_ANYWHERE inline Element narrow(Element value, Element) {
  return value;
}

// Integers are combined without their sign, in 32 bits or more, so that wrapping around is defined.
template <class T, bool = std::is_integral_v<T>>
struct WrappingOf {
  using type = T;
};
template <class T>
struct WrappingOf<T, true> {
  using type = std::make_unsigned_t<std::common_type_t<T, int>>;
};
template <class T>
using Wrapping = typename WrappingOf<T>::type;

struct Sum {
  template <class T>
  TANDEM_ANYWHERE T operator()(T a, T b) const {
    return static_cast<T>(static_cast<Wrapping<T>>(a) + static_cast<Wrapping<T>>(b));
  }
};
struct Product {
  template <class T>
  TANDEM_ANYWHERE T operator()(T a, T b) const {
    return static_cast<T>(static_cast<Wrapping<T>>(a) * static_cast<Wrapping<T>>(b));
  }
};
struct Or {
  TANDEM_ANYWHERE std::uint8_t operator()(std::uint8_t a, std::uint8_t b) const { return a | b; }
};
struct And {
  TANDEM_ANYWHERE std::uint8_t operator()(std::uint8_t a, std::uint8_t b) const { return a & b; }
};
// A NaN is greater and smaller than all.
struct Max {
  template <class T>
  TANDEM_ANYWHERE T operator()(T a, T b) const {
    return a > b || a != a ? a : b;
  }
};
struct Min {
  template <class T>
  TANDEM_ANYWHERE T operator()(T a, T b) const {
    return a < b || a != a ? a : b;
  }
};

}  // namespace tandem::comm::arithmetic
