// What a thread of the reduction kernel does. Compiles on the host too, so that tests can run it there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "comm/reduction_arithmetic.h"
#include "tandem/comm/reduction.h"

namespace tandem::cuda {

/// Ranks that a kernel can take: their pointers are its arguments.
constexpr int kMostRanks = 64;

struct Arguments {
  const void* inputs[kMostRanks];
  void* outputs[kMostRanks];
  int input_count, output_count;
  std::size_t count;  // elements
  bool mean;
};

TANDEM_ANYWHERE inline float divisor_of(float, int ranks) { return static_cast<float>(ranks); }
TANDEM_ANYWHERE inline double divisor_of(double, int ranks) { return ranks; }
template <class T>
TANDEM_ANYWHERE T divisor_of(comm::arithmetic::Complex<T>, int ranks) {
  return static_cast<T>(ranks);
}

/// So many elements from `at` on, which lie as densely as one number of their size where they are read.
template <class Element, class Combine, int kWidth>
TANDEM_ANYWHERE void reduce_at(const Arguments& arguments, std::size_t at) {
  using comm::arithmetic::narrow;
  using comm::arithmetic::widen;
  using Accumulator = decltype(widen(std::declval<Element>()));
  struct alignas(kWidth * sizeof(Element)) Pack {
    Element values[kWidth];
  };
  const auto load = [&](int rank) {
    return *reinterpret_cast<const Pack*>(static_cast<const Element*>(arguments.inputs[rank]) + at);
  };
  Accumulator total[kWidth];
  Pack pack = load(0);
  for (int i = 0; i < kWidth; ++i) total[i] = widen(pack.values[i]);
  for (int rank = 1; rank < arguments.input_count; ++rank) {
    pack = load(rank);
    for (int i = 0; i < kWidth; ++i) total[i] = Combine()(total[i], widen(pack.values[i]));
  }
  if constexpr (!std::is_integral_v<Accumulator>) {
    if (arguments.mean)
      for (int i = 0; i < kWidth; ++i) total[i] = total[i] / divisor_of(total[i], arguments.input_count);
  }
  for (int i = 0; i < kWidth; ++i) pack.values[i] = narrow(total[i], Element{});
  for (int output = 0; output < arguments.output_count; ++output)
    *reinterpret_cast<Pack*>(static_cast<Element*>(arguments.outputs[output]) + at) = pack;
}

/// The part of thread `thread` of `threads`. `aligned`: all pointers are multiples of 16 bytes.
template <class Element, class Combine>
TANDEM_ANYWHERE void reduce_part(const Arguments& arguments, bool aligned, std::size_t thread, std::size_t threads) {
  constexpr int kWidth = 16 / sizeof(Element);
  const std::size_t packs = aligned ? arguments.count / kWidth : 0;
  for (std::size_t pack = thread; pack < packs; pack += threads)
    reduce_at<Element, Combine, kWidth>(arguments, pack * kWidth);
  for (std::size_t at = packs * kWidth + thread; at < arguments.count; at += threads)
    reduce_at<Element, Combine, 1>(arguments, at);
}

/// Calls `run` with the element's type and what combines two of them, as std::type_identity; returns its result.
template <class Run>
auto with_types(comm::ElementType type, comm::ReduceOp op, const Run& run) {
  using namespace comm::arithmetic;
  using comm::ElementType;
  using comm::ReduceOp;
  const auto with = [&]<class Element, class Combine>(std::type_identity<Element>, std::type_identity<Combine>) {
    return run(std::type_identity<Element>(), std::type_identity<Combine>());
  };
  const auto adding = [&]<class Element>(std::type_identity<Element> element) {
    return op == ReduceOp::product ? with(element, std::type_identity<Product>())
                                   : with(element, std::type_identity<Sum>());
  };
  const auto ordered = [&]<class Element>(std::type_identity<Element> element) {
    return op == ReduceOp::max ? with(element, std::type_identity<Max>()) : with(element, std::type_identity<Min>());
  };
  const bool orders = op == ReduceOp::max || op == ReduceOp::min;
  const auto real = [&]<class Element>(std::type_identity<Element> element) {
    return orders ? ordered(element) : adding(element);
  };
  // Adding up wraps around, whatever the sign.
  const auto integer = [&]<class Element>(std::type_identity<Element> element) {
    return orders ? ordered(element) : adding(std::type_identity<std::make_unsigned_t<Element>>());
  };
  switch (type) {
    case ElementType::float32: return real(std::type_identity<float>());
    case ElementType::float64: return real(std::type_identity<double>());
    case ElementType::float16: return real(std::type_identity<Float16>());
    case ElementType::bfloat16: return real(std::type_identity<BFloat16>());
    case ElementType::complex64: return adding(std::type_identity<Complex<float>>());
    case ElementType::complex128: return adding(std::type_identity<Complex<double>>());
    case ElementType::int8: return integer(std::type_identity<std::int8_t>());
    case ElementType::int16: return integer(std::type_identity<std::int16_t>());
    case ElementType::int32: return integer(std::type_identity<std::int32_t>());
    case ElementType::int64: return integer(std::type_identity<std::int64_t>());
    case ElementType::uint8: return integer(std::type_identity<std::uint8_t>());
    case ElementType::uint16: return integer(std::type_identity<std::uint16_t>());
    case ElementType::uint32: return integer(std::type_identity<std::uint32_t>());
    case ElementType::uint64: return integer(std::type_identity<std::uint64_t>());
    case ElementType::boolean: break;
  }
  return op == ReduceOp::product || op == ReduceOp::min ? with(std::type_identity<Bool>(), std::type_identity<And>())
                                                        : with(std::type_identity<Bool>(), std::type_identity<Or>());
}

}  // namespace tandem::cuda
