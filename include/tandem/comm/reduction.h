#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace tandem::comm {

/// How a reduction combines the ranks' values. Always evaluated in rank order, so results do not depend on timing.
enum class ReduceOp : std::uint8_t {
  sum,
  mean,  ///< sum / world size; floating-point and complex types only
  max,
  min,
  product
};

/// Lower-case name of `op`.
const char* to_string(ReduceOp op);

/// Types of elements that can be reduced.
enum class ElementType : std::uint8_t {
  float32,
  float64,
  float16,
  bfloat16,
  complex64,
  complex128,
  int8,
  int16,
  int32,
  int64,
  uint8,
  uint16,
  uint32,
  uint64,
  boolean
};

/// Bytes of an element.
std::size_t size_of(ElementType type);

/// Reduces elements [begin, end) of the `inputs`, one a rank, in their order, and writes the result to the elements
/// from `begin - output_offset` on of all `outputs`, which may be the inputs themselves.
///
/// float16 and bfloat16 are accumulated in float32 and rounded once, to nearest even. Integers wrap around. bool: sum
/// and max are logical or, product and min logical and. A NaN on any rank makes max and min NaN. Complex numbers are
/// multiplied by the textbook's formula, each product in it rounded. mean needs a floating-point or complex type, max
/// and min a type that has an order.
void reduce_elements(ElementType type, ReduceOp op, std::span<const void* const> inputs, std::span<void* const> outputs,
                     std::int64_t begin, std::int64_t end, std::int64_t output_offset = 0);

/// Elements that are reduced at a time.
constexpr std::int64_t kReductionBlock = 1024;

/// Reduces as reduce_elements does, with output_offset 0, to a sum or mean of real floating-point elements, and adds up
/// the squares of each block of kReductionBlock elements of the result, and writes them to element `block` of all
/// `squares`. `begin` is a multiple of kReductionBlock. Spares reading the result again.
void reduce_with_squares(ElementType type, ReduceOp op, std::span<const void* const> inputs,
                         std::span<void* const> outputs, std::span<double* const> squares, std::int64_t begin,
                         std::int64_t end);

/// Sum of squares of a block of at most kReductionBlock elements, to the bit as reduce_with_squares has it: in the
/// elements' type, or float32 for smaller ones. Real floating-point types only.
double sum_of_squares(ElementType type, const void* data, std::int64_t elements);

}  // namespace tandem::comm
