// The reduction kernel's threads, run on the host one after the other, against the CPU's reductions.
#include "backend/cuda/reduce_elements.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <random>
#include <vector>

#include "support/catch.h"

using namespace tandem;
using comm::ElementType;
using comm::ReduceOp;

namespace {

constexpr ElementType kTypes[] = {
    ElementType::float32,    ElementType::float64, ElementType::float16, ElementType::bfloat16, ElementType::complex64,
    ElementType::complex128, ElementType::int8,    ElementType::int16,   ElementType::int32,    ElementType::int64,
    ElementType::uint8,      ElementType::uint16,  ElementType::uint32,  ElementType::uint64,   ElementType::boolean};
constexpr ReduceOp kOps[] = {ReduceOp::sum, ReduceOp::mean, ReduceOp::max, ReduceOp::min, ReduceOp::product};

bool is_complex(ElementType type) { return type == ElementType::complex64 || type == ElementType::complex128; }
bool is_floating(ElementType type) { return type <= ElementType::bfloat16; }

bool defined_for(ElementType type, ReduceOp op) {
  if (op == ReduceOp::mean) return is_floating(type) || is_complex(type);
  return !(is_complex(type) && (op == ReduceOp::max || op == ReduceOp::min));
}

// Numbers that have a way of their own through additions and roundings: zeros, infinities, NaNs, the largest, the
// smallest, and such as can be added up.
template <class T>
T special(std::mt19937_64& random) {
  using Limits = std::numeric_limits<T>;
  const T values[] = {T(0),
                      -T(0),
                      T(1),
                      T(-1.5),
                      Limits::max(),
                      Limits::lowest(),
                      Limits::min(),
                      Limits::denorm_min(),
                      -Limits::denorm_min(),
                      Limits::infinity(),
                      -Limits::infinity(),
                      Limits::quiet_NaN(),
                      std::normal_distribution<T>()(random)};
  return values[random() % std::size(values)];
}

// The same of float16, or bfloat16.
std::uint16_t special_half(bool brain, std::mt19937_64& random) {
  const std::uint16_t one = brain ? 0x3f80 : 0x3c00, infinity = brain ? 0x7f80 : 0x7c00;
  const std::uint16_t values[] = {0,
                                  1,
                                  one,
                                  infinity,
                                  static_cast<std::uint16_t>(infinity - 1),
                                  static_cast<std::uint16_t>(infinity + 1),
                                  static_cast<std::uint16_t>(one + random() % 256)};
  return static_cast<std::uint16_t>(values[random() % std::size(values)] | (random() % 2 << 15));
}

// Any bits; for floating-point numbers, which would hardly ever be of one magnitude then, special ones besides.
void fill(std::byte* data, std::size_t count, ElementType type, std::mt19937_64& random) {
  const std::size_t size = size_of(type), part = is_complex(type) ? size / 2 : size;
  for (std::size_t at = 0; at < count * size; at += part) {
    std::uint64_t bits = random();
    if (type == ElementType::boolean) bits &= 1;
    if ((is_floating(type) || is_complex(type)) && random() % 2) {
      if (part == 2) bits = special_half(type == ElementType::bfloat16, random);
      if (part == 4) bits = std::bit_cast<std::uint32_t>(special<float>(random));
      if (part == 8) bits = std::bit_cast<std::uint64_t>(special<double>(random));
    }
    std::memcpy(data + at, &bits, part);
  }
}

template <class T>
bool same_or_nans(const std::byte* a, const std::byte* b) {
  T x, y;
  std::memcpy(&x, a, sizeof x);
  std::memcpy(&y, b, sizeof y);
  return std::memcmp(&x, &y, sizeof x) == 0 || (std::isnan(x) && std::isnan(y));
}

bool same_halves(const std::byte* a, const std::byte* b) {
  std::uint16_t x, y;
  std::memcpy(&x, a, sizeof x);
  std::memcpy(&y, b, sizeof y);
  const auto is_nan = [](std::uint16_t bits) { return (bits & 0x7fff) > 0x7c00; };
  return x == y || (is_nan(x) && is_nan(y));
}

// Which of several NaNs comes out of a sum is the processor's choice.
bool same(ElementType type, const std::vector<std::byte>& a, const std::vector<std::byte>& b) {
  const std::size_t part = type == ElementType::complex64 ? 4 : type == ElementType::complex128 ? 8 : size_of(type);
  const bool single = type == ElementType::float32 || type == ElementType::complex64;
  const bool wide = type == ElementType::float64 || type == ElementType::complex128;
  for (std::size_t at = 0; at < a.size(); at += part) {
    const bool equal = single                         ? same_or_nans<float>(&a[at], &b[at])
                       : wide                         ? same_or_nans<double>(&a[at], &b[at])
                       : type == ElementType::float16 ? same_halves(&a[at], &b[at])
                                                      : std::memcmp(&a[at], &b[at], part) == 0;
    if (!equal) return false;
  }
  return true;
}

}  // namespace

TEST_CASE("the kernel's threads reduce as the CPU does, aligned or not, in place or not") {
  std::mt19937_64 random(7);
  for (const ElementType type : kTypes)
    for (const ReduceOp op : kOps) {
      if (!defined_for(type, op)) continue;
      for (const int ranks : {1, 2, 3, 8})
        for (const std::size_t count : {0, 1, 5, 16, 100, 1003}) {
          const bool aligned = random() % 2, in_place = random() % 2;
          const std::size_t shift = aligned ? 0 : size_of(type), bytes = count * size_of(type);
          CAPTURE(static_cast<int>(type), to_string(op), ranks, count, aligned, in_place);
          struct alignas(16) Block {
            std::byte bytes[16];
          };
          std::vector<std::vector<Block>> inputs(static_cast<std::size_t>(ranks), std::vector<Block>(bytes / 16 + 2));
          auto outputs = inputs;
          cuda::Arguments arguments{};
          std::vector<const void*> from;
          for (std::size_t rank = 0; rank < inputs.size(); ++rank) {
            std::byte* const in = inputs[rank].front().bytes + shift;
            fill(in, count, type, random);
            arguments.inputs[rank] = in;
            arguments.outputs[rank] = in_place ? in : outputs[rank].front().bytes + shift;
            from.push_back(in);
          }
          std::vector<std::byte> expected(bytes + 1);
          void* const to = expected.data();
          comm::reduce_elements(type, op, from, std::span(&to, 1), 0, static_cast<std::int64_t>(count));
          expected.pop_back();
          arguments.input_count = arguments.output_count = ranks;
          arguments.count = count;
          arguments.mean = op == ReduceOp::mean;
          const std::size_t threads = 1 + random() % 40;
          cuda::with_types(type, op,
                           [&]<class Element, class Combine>(std::type_identity<Element>, std::type_identity<Combine>) {
                             for (std::size_t thread = 0; thread < threads; ++thread)
                               cuda::reduce_part<Element, Combine>(arguments, aligned, thread, threads);
                             return 0;
                           });
          for (int rank = 0; rank < ranks; ++rank) {
            const auto* const out = static_cast<const std::byte*>(arguments.outputs[rank]);
            REQUIRE(same(type, std::vector<std::byte>(out, out + bytes), expected));
          }
        }
    }
}
