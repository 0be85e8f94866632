#include "tandem/comm/reduction.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "comm/partial_reduction.h"
#include "comm/reduction_arithmetic.h"

// One source for all vector units: the compiler makes a version of the loops for each and picks one at run time.
// Sanitizers cannot start with such functions.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__) && \
    !defined(__SANITIZE_ADDRESS__)
#define TANDEM_EACH_VECTOR_UNIT __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define TANDEM_EACH_VECTOR_UNIT
#endif

namespace tandem::comm {

const char* to_string(ReduceOp op) {
  switch (op) {
    case ReduceOp::sum: return "sum";
    case ReduceOp::mean: return "mean";
    case ReduceOp::max: return "max";
    case ReduceOp::min: return "min";
    case ReduceOp::product: return "product";
  }
  return "unknown reduction";
}

namespace {

using namespace arithmetic;

constexpr std::int64_t kBlock = kReductionBlock;  // its partial results stay in the first-level cache

struct Work {
  std::span<const void* const> inputs;
  std::span<void* const> outputs;
  std::span<double* const> squares;  // of blocks of the outputs; empty: not wanted
  std::int64_t begin, end, output_offset;
  bool mean;
};

template <class T>
struct Real {
  using type = T;
};
template <class T>
struct Real<Complex<T>> {
  using type = T;
};
template <class T>
using RealOf = typename Real<T>::type;

template <class Element>
constexpr bool kIsReal = std::is_floating_point_v<decltype(widen(std::declval<Element>()))>;

// In so many sums side by side that they fill the registers of any vector unit; in the same order for all of them.
template <class Element>
TANDEM_EACH_VECTOR_UNIT double squares_of(const Element* values, std::int64_t n) {
  constexpr std::int64_t kSums = 64;
  using Accumulator = decltype(widen(std::declval<Element>()));
  alignas(64) Accumulator sums[kSums] = {};
  std::int64_t i = 0;
  for (; i + kSums <= n; i += kSums)
    for (std::int64_t j = 0; j < kSums; ++j) sums[j] += widen(values[i + j]) * widen(values[i + j]);
  for (std::int64_t j = 0; i + j < n; ++j) sums[j] += widen(values[i + j]) * widen(values[i + j]);
  double total = 0;
  for (const Accumulator sum : sums) total += static_cast<double>(sum);
  return total;
}

template <class Element, class Combine>
TANDEM_EACH_VECTOR_UNIT void reduce_with(const Work& work) {
  using Accumulator = decltype(widen(std::declval<Element>()));
  const Combine combine;
  const auto count = static_cast<double>(work.inputs.size());
  alignas(64) Accumulator total[kBlock];
  for (std::int64_t at = work.begin; at < work.end; at += kBlock) {
    const std::int64_t n = std::min(kBlock, work.end - at);
    const auto* first = static_cast<const Element*>(work.inputs[0]) + at;
    for (std::int64_t i = 0; i < n; ++i) total[i] = widen(first[i]);
    for (std::size_t rank = 1; rank < work.inputs.size(); ++rank) {
      const auto* values = static_cast<const Element*>(work.inputs[rank]) + at;
      for (std::int64_t i = 0; i < n; ++i) total[i] = combine(total[i], widen(values[i]));
    }
    if constexpr (!std::is_integral_v<Accumulator>) {
      if (work.mean) {
        // Exact for 2, 4 and 8 ranks, and the correctly rounded mean for others.
        const auto divisor = static_cast<RealOf<Accumulator>>(count);
        for (std::int64_t i = 0; i < n; ++i) total[i] = total[i] / divisor;
      }
    }
    for (void* output : work.outputs) {
      auto* values = static_cast<Element*>(output) + (at - work.output_offset);
      for (std::int64_t i = 0; i < n; ++i) values[i] = narrow(total[i], Element{});
    }
    if constexpr (kIsReal<Element>) {
      if (work.squares.empty()) continue;
      const double sum = squares_of(static_cast<const Element*>(work.outputs[0]) + at, n);
      for (double* squares : work.squares) squares[at / kBlock] = sum;
    }
  }
}

template <class Element>
void reduce_as(ReduceOp op, const Work& work) {
  switch (op) {
    case ReduceOp::sum:
    case ReduceOp::mean: return reduce_with<Element, Sum>(work);
    case ReduceOp::max: return reduce_with<Element, Max>(work);
    case ReduceOp::min: return reduce_with<Element, Min>(work);
    case ReduceOp::product: return reduce_with<Element, Product>(work);
  }
}

template <class Element>
void reduce_complex(ReduceOp op, const Work& work) {
  if (op == ReduceOp::product) return reduce_with<Element, Product>(work);
  reduce_with<Element, Sum>(work);
}

void reduce_bool(ReduceOp op, const Work& work) {
  if (op == ReduceOp::product || op == ReduceOp::min) return reduce_with<Bool, And>(work);
  reduce_with<Bool, Or>(work);
}

}  // namespace

std::size_t size_of(ElementType type) {
  switch (type) {
    case ElementType::int8:
    case ElementType::uint8:
    case ElementType::boolean: return 1;
    case ElementType::float16:
    case ElementType::bfloat16:
    case ElementType::int16:
    case ElementType::uint16: return 2;
    case ElementType::float32:
    case ElementType::int32:
    case ElementType::uint32: return 4;
    case ElementType::float64:
    case ElementType::complex64:
    case ElementType::int64:
    case ElementType::uint64: return 8;
    case ElementType::complex128: return 16;
  }
  return 0;
}

namespace {

void reduce(ElementType type, ReduceOp op, const Work& work) {
  switch (type) {
    case ElementType::float32: return reduce_as<float>(op, work);
    case ElementType::float64: return reduce_as<double>(op, work);
    case ElementType::float16: return reduce_as<Float16>(op, work);
    case ElementType::bfloat16: return reduce_as<BFloat16>(op, work);
    case ElementType::complex64: return reduce_complex<Complex<float>>(op, work);
    case ElementType::complex128: return reduce_complex<Complex<double>>(op, work);
    case ElementType::int8: return reduce_as<std::int8_t>(op, work);
    case ElementType::int16: return reduce_as<std::int16_t>(op, work);
    case ElementType::int32: return reduce_as<std::int32_t>(op, work);
    case ElementType::int64: return reduce_as<std::int64_t>(op, work);
    case ElementType::uint8: return reduce_as<std::uint8_t>(op, work);
    case ElementType::uint16: return reduce_as<std::uint16_t>(op, work);
    case ElementType::uint32: return reduce_as<std::uint32_t>(op, work);
    case ElementType::uint64: return reduce_as<std::uint64_t>(op, work);
    case ElementType::boolean: return reduce_bool(op, work);
  }
}

}  // namespace

void reduce_elements(ElementType type, ReduceOp op, std::span<const void* const> inputs, std::span<void* const> outputs,
                     std::int64_t begin, std::int64_t end, std::int64_t output_offset) {
  reduce(type, op, {inputs, outputs, {}, begin, end, output_offset, op == ReduceOp::mean});
}

void reduce_with_squares(ElementType type, ReduceOp op, std::span<const void* const> inputs,
                         std::span<void* const> outputs, std::span<double* const> squares, std::int64_t begin,
                         std::int64_t end) {
  reduce(type, op, {inputs, outputs, squares, begin, end, 0, op == ReduceOp::mean});
}

double sum_of_squares(ElementType type, const void* data, std::int64_t elements) {
  switch (type) {
    case ElementType::float32: return squares_of(static_cast<const float*>(data), elements);
    case ElementType::float64: return squares_of(static_cast<const double*>(data), elements);
    case ElementType::float16: return squares_of(static_cast<const Float16*>(data), elements);
    case ElementType::bfloat16: return squares_of(static_cast<const BFloat16*>(data), elements);
    default: return std::numeric_limits<double>::quiet_NaN();
  }
}

namespace {

template <class Element>
using AccumulatorOf = decltype(widen(std::declval<Element>()));

// Calls `use` with an element of `type`.
template <class Use>
auto with_element(ElementType type, const Use& use) {
  switch (type) {
    case ElementType::float32: return use(float{});
    case ElementType::float64: return use(double{});
    case ElementType::float16: return use(Float16{});
    case ElementType::bfloat16: return use(BFloat16{});
    case ElementType::complex64: return use(Complex<float>{});
    case ElementType::complex128: return use(Complex<double>{});
    case ElementType::int8: return use(std::int8_t{});
    case ElementType::int16: return use(std::int16_t{});
    case ElementType::int32: return use(std::int32_t{});
    case ElementType::int64: return use(std::int64_t{});
    case ElementType::uint8: return use(std::uint8_t{});
    case ElementType::uint16: return use(std::uint16_t{});
    case ElementType::uint32: return use(std::uint32_t{});
    case ElementType::uint64: return use(std::uint64_t{});
    case ElementType::boolean: break;
  }
  return use(Bool{});
}

// Calls `use` with what combines such elements.
template <class Element, class Use>
void with_combine(ReduceOp op, const Use& use) {
  if constexpr (std::is_same_v<Element, Bool>) {
    if (op == ReduceOp::product || op == ReduceOp::min) return use(And{});
    return use(Or{});
  } else {
    if (op == ReduceOp::product) return use(Product{});
    if constexpr (std::is_same_v<Element, RealOf<Element>>) {
      if (op == ReduceOp::max) return use(Max{});
      if (op == ReduceOp::min) return use(Min{});
    }
    return use(Sum{});
  }
}

template <class Element, class Combine>
TANDEM_EACH_VECTOR_UNIT void accumulate_with(const void* before, std::span<const void* const> inputs,
                                             std::int64_t begin, std::int64_t end, void* after) {
  using Accumulator = AccumulatorOf<Element>;
  const Combine combine;
  const std::size_t first = before ? 0 : 1;
  for (std::int64_t at = begin; at < end; at += kBlock) {
    const std::int64_t n = std::min(kBlock, end - at);
    auto* total = static_cast<Accumulator*>(after) + (at - begin);
    if (before) {
      const auto* values = static_cast<const Accumulator*>(before) + (at - begin);
      if (values != total) std::copy(values, values + n, total);
    } else {
      const auto* values = static_cast<const Element*>(inputs[0]) + at;
      for (std::int64_t i = 0; i < n; ++i) total[i] = widen(values[i]);
    }
    for (std::size_t rank = first; rank < inputs.size(); ++rank) {
      const auto* values = static_cast<const Element*>(inputs[rank]) + at;
      for (std::int64_t i = 0; i < n; ++i) total[i] = combine(total[i], widen(values[i]));
    }
  }
}

// `divisor` is 0 where nothing is divided.
template <class Element>
TANDEM_EACH_VECTOR_UNIT void finish_with(const void* partial, int divisor, void* output, std::int64_t begin,
                                         std::int64_t end) {
  using Accumulator = AccumulatorOf<Element>;
  const auto* totals = static_cast<const Accumulator*>(partial);
  auto* values = static_cast<Element*>(output) + begin;
  const std::int64_t n = end - begin;
  if constexpr (!std::is_integral_v<Accumulator>) {
    if (divisor != 0) {
      const auto by = static_cast<RealOf<Accumulator>>(divisor);
      for (std::int64_t i = 0; i < n; ++i) values[i] = narrow(totals[i] / by, Element{});
      return;
    }
  }
  for (std::int64_t i = 0; i < n; ++i) values[i] = narrow(totals[i], Element{});
}

}  // namespace

std::size_t partial_size_of(ElementType type) {
  return with_element(type, []<class Element>(Element) { return sizeof(AccumulatorOf<Element>); });
}

void accumulate(ElementType type, ReduceOp op, const void* before, std::span<const void* const> inputs,
                std::int64_t begin, std::int64_t end, void* after) {
  with_element(type, [&]<class Element>(Element) {
    with_combine<Element>(
        op, [&]<class Combine>(Combine) { accumulate_with<Element, Combine>(before, inputs, begin, end, after); });
  });
}

void finish_partial(ElementType type, ReduceOp op, const void* partial, int ranks, std::span<void* const> outputs,
                    std::int64_t begin, std::int64_t end) {
  const int divisor = op == ReduceOp::mean ? ranks : 0;
  with_element(type, [&]<class Element>(Element) {
    for (void* output : outputs) finish_with<Element>(partial, divisor, output, begin, end);
  });
}

}  // namespace tandem::comm
