#pragma once

#include <compare>
#include <cstdint>
#include <ostream>
#include <type_traits>
#include <utility>
#include <variant>

#include "tandem/data/batch.h"
#include "tandem/runtime/detail/gathered.h"
#include "tandem/runtime/detail/value_parts.h"

/// \file
/// What ranks exchange by gather, reduce, broadcast and pad_across_ranks: tensors, numbers (bool, integers and
/// floating-point types), and the nestings of them that data/batch.h has.
namespace tandem {

namespace detail {

// Says what is wrong with a type that the ranks cannot exchange.
template <class T>
consteval void check_exchangeable() {
  constexpr data::detail::PartKinds kinds = data::detail::part_kinds<T>();
  static_assert(!kinds.unknown,
                "gather, reduce, broadcast and pad_across_ranks take tensors, numbers and nestings of them (vector, "
                "array, pair, tuple, optional, map, unordered_map, torch::data::Example). For a struct of your own add "
                "`inline auto batch_fields(YourStruct& s) { return std::tie(s.a, s.b); }` beside it, with its tensors "
                "and numbers (tandem/data/batch.h); any copyable object goes through gather_objects and "
                "broadcast_object");
  static_assert(!kinds.plain,
                "gather, reduce, broadcast and pad_across_ranks take tensors and numbers, and there is a text or an "
                "enum in this value: leave it out of batch_fields, or use gather_objects and broadcast_object");
  static_assert(kinds.unknown || kinds.plain || kinds.tensors || kinds.numbers,
                "there is neither a tensor nor a number in this type; name them in batch_fields "
                "(tandem/data/batch.h), or use gather_objects and broadcast_object");
}

}  // namespace detail

/// A type that gather, reduce, broadcast and pad_across_ranks take: of tensors and numbers only, and with at least one.
template <class T>
concept RankValue = !data::detail::part_kinds<T>().unknown && !data::detail::part_kinds<T>().plain &&
                    (data::detail::part_kinds<T>().tensors || data::detail::part_kinds<T>().numbers);

/// What `gather` gives for a T. A number becomes the std::vector of all ranks' numbers, and so does a std::vector or
/// std::array of numbers (joined, as a tensor of one dim is); tensors and structs keep their types.
template <class T>
using Gathered = typename detail::GatheredType<T>::type;

/// What reduce(integer, op) gives: the integer, exactly, and after ReduceOp::mean a double. Give it a type:
///
///     const double mean = accelerator.reduce(correct, ReduceOp::mean);
///     const std::int64_t most = accelerator.reduce(correct, ReduceOp::max);
class ReducedInteger {
 public:
  /// Holds an integer.
  explicit ReducedInteger(std::int64_t value) : value_(value) {}
  /// Holds a mean.
  explicit ReducedInteger(double mean) : value_(mean) {}

  /// The value as a number of another type. Throws CollectiveError where it is not an integer of that type, as a mean
  /// of 0.5.
  template <class N>
  requires std::is_arithmetic_v<N>
  operator N() const { return detail::from_number<N>(value_); }

  /// True when the values are equal, whatever their types.
  template <class N>
  requires std::is_arithmetic_v<N>
  friend bool operator==(const ReducedInteger& a, N b) { return (a <=> b) == 0; }

  /// Compares the values: integers exactly.
  template <class N>
  requires std::is_arithmetic_v<N>
  friend std::partial_ordering operator<=>(const ReducedInteger& a, N b) {
    if constexpr (std::is_integral_v<N>) {
      using Wide = std::conditional_t<std::is_unsigned_v<N>, std::uint64_t, std::int64_t>;
      const auto wide = static_cast<Wide>(b);
      if (const auto* integer = std::get_if<std::int64_t>(&a.value_)) {
        if (std::cmp_less(*integer, wide)) return std::partial_ordering::less;
        return std::cmp_equal(*integer, wide) ? std::partial_ordering::equivalent : std::partial_ordering::greater;
      }
    }
    return detail::from_number<double>(a.value_) <=> static_cast<double>(b);
  }

  /// Writes the value.
  friend std::ostream& operator<<(std::ostream& to, const ReducedInteger& value) {
    std::visit([&](auto held) { to << held; }, value.value_);
    return to;
  }

 private:
  detail::Number value_;
};

/// What `reduce` gives for a T: std::int64_t for an integer, double for a floating-point number, otherwise a T.
template <class T>
using Reduced =
    std::conditional_t<std::is_integral_v<T>, std::int64_t, std::conditional_t<std::is_floating_point_v<T>, double, T>>;

}  // namespace tandem
