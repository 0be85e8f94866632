#include "runtime/reduce_numbers.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "tandem/core/error.h"

namespace tandem {
namespace {

using comm::ReduceOp;
using detail::Number;

double combine(double a, double b, ReduceOp op) {
  switch (op) {
    case ReduceOp::max: return std::isnan(a) || a > b ? a : b;  // a NaN on any rank is the result
    case ReduceOp::min: return std::isnan(a) || a < b ? a : b;
    case ReduceOp::product: return a * b;
    case ReduceOp::sum:
    case ReduceOp::mean: break;
  }
  return a + b;
}

template <class Integer>
Integer combine(Integer a, Integer b, ReduceOp op) {
  if (op == ReduceOp::max) return std::max(a, b);
  if (op == ReduceOp::min) return std::min(a, b);
  Integer result = 0;
  const bool overflows =
      op == ReduceOp::product ? __builtin_mul_overflow(a, b, &result) : __builtin_add_overflow(a, b, &result);
  if (overflows)
    throw CollectiveError("the " + std::string(comm::to_string(op)) +
                          " of the ranks' integers does not fit into 64 bits; reduce them as double");
  return result;
}

template <class Value>
Number reduced(std::span<const Number> numbers, ReduceOp op) {
  Value result = std::get<Value>(numbers.front());
  for (const Number& number : numbers.subspan(1)) result = combine(result, std::get<Value>(number), op);
  if constexpr (std::is_same_v<Value, double>)
    if (op == ReduceOp::mean) result /= static_cast<double>(numbers.size());
  return result;
}

}  // namespace

void check_reduction(ReduceOp op, const detail::Numbers& numbers) {
  if (op == ReduceOp::mean && numbers.integers)
    throw CollectiveError(std::string("the mean of ") + numbers.type +
                          " within a nesting is not defined, since it is no such integer; make it a double, or reduce "
                          "it alone, which gives a double");
}

Number reduce_numbers(std::span<const Number> numbers, ReduceOp op) {
  return std::visit([&](auto first) { return reduced<decltype(first)>(numbers, op); }, numbers.front());
}

}  // namespace tandem
