#pragma once

#include <cstddef>
#include <type_traits>
#include <typeinfo>
#include <vector>

#include <torch/optim/optimizer.h>

namespace tandem::optim {

/// What the compiler knows of the class of an optimizer, which a checkpoint needs to know: what it keeps in members
/// that no save() writes.
struct OptimizerClass {
  const std::type_info* type = nullptr;  ///< that it was given as, which may be a base of what it is; null: not known
  const std::type_info* saved_by = nullptr;   ///< the class that defines its save(); null: one of the program's
  const std::byte* members = nullptr;         ///< those that were added to a class since it defined save() and load()
  std::vector<std::byte> first_members = {};  ///< as they were when it was prepared; empty: there are none
};

namespace detail {

template <class Class, class Member>
std::type_identity<Class> class_of(Member Class::*);

}  // namespace detail

/// What is known of the class of `optimizer`, which outlives the result.
template <class Optimizer>
OptimizerClass optimizer_class(const Optimizer& optimizer) {
  OptimizerClass its{.type = &typeid(Optimizer)};
  // Neither where they are overloaded or not accessible, which they are only by the program's doing.
  if constexpr (requires {
                  detail::class_of(&Optimizer::save);
                  detail::class_of(&Optimizer::load);
                }) {
    using Saving = typename decltype(detail::class_of(&Optimizer::save))::type;
    using Loading = typename decltype(detail::class_of(&Optimizer::load))::type;
    constexpr std::size_t saved = sizeof(Saving) < sizeof(Loading) ? sizeof(Saving) : sizeof(Loading);
    its.saved_by = &typeid(Saving);
    its.members = reinterpret_cast<const std::byte*>(&optimizer) + saved;
    its.first_members.assign(its.members, reinterpret_cast<const std::byte*>(&optimizer) + sizeof(Optimizer));
  }
  return its;
}

}  // namespace tandem::optim
