#pragma once

#include <type_traits>
#include <typeinfo>

#include <torch/optim/optimizer.h>

namespace tandem::optim {

/// What the compiler knows of the class of an optimizer, which a checkpoint needs to know: whether it keeps members that
/// its save() does not write.
struct OptimizerClass {
  const std::type_info* type = nullptr;      ///< that it was given as, which may be a base of what it is; null: not known
  const std::type_info* saved_by = nullptr;  ///< the class that defines its save(); null: one of the program's
  std::size_t unsaved_bytes = 0;  ///< of members that were added to a class since it defined save() and load()
};

namespace detail {

template <class Class, class Member>
std::type_identity<Class> class_of(Member Class::*);

}  // namespace detail

/// What is known of the class `Optimizer`.
template <class Optimizer>
OptimizerClass optimizer_class() {
  OptimizerClass its{.type = &typeid(Optimizer)};
  // Neither where they are overloaded or not accessible, which they are only by the program's doing.
  if constexpr (requires {
                  detail::class_of(&Optimizer::save);
                  detail::class_of(&Optimizer::load);
                }) {
    using Saving = typename decltype(detail::class_of(&Optimizer::save))::type;
    using Loading = typename decltype(detail::class_of(&Optimizer::load))::type;
    its.saved_by = &typeid(Saving);
    its.unsaved_bytes = sizeof(Optimizer) - (sizeof(Saving) < sizeof(Loading) ? sizeof(Saving) : sizeof(Loading));
  }
  return its;
}

}  // namespace tandem::optim
