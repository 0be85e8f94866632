// The names of ranges, and what goes with them: the one place for them. No spaces: tools filter by name in option
// files.
#pragma once

#include <array>

#include "tandem/trace/range.h"

namespace tandem::trace {

struct EventProperties {
  const char* name;
  Kind kind;
};

inline constexpr std::array<EventProperties, 13> kEvents{{{"micro-batch", Kind::other},
                                                          {"data-wait", Kind::data_wait},
                                                          {"forward", Kind::forward},
                                                          {"backward", Kind::backward},
                                                          {"all-reduce", Kind::communication},
                                                          {"reduction", Kind::communication},
                                                          {"gradient-wait", Kind::communication},
                                                          {"clip", Kind::optimizer},
                                                          {"optimizer", Kind::optimizer},
                                                          {"weight-exchange", Kind::communication},
                                                          {"collective", Kind::communication},
                                                          {"replay", Kind::forward},
                                                          {"checkpoint", Kind::other}}};
static_assert(kEvents.size() == static_cast<std::size_t>(Event::checkpoint) + 1);

constexpr const EventProperties& properties_of(Event event) { return kEvents[static_cast<std::size_t>(event)]; }

struct KindProperties {
  const char* name;
  std::uint32_t colour;  // ARGB
};

inline constexpr std::array<KindProperties, kKinds> kKindProperties{{{"data wait", 0xFFE69F00},
                                                                     {"forward", 0xFF009E73},
                                                                     {"backward", 0xFF0072B2},
                                                                     {"communication", 0xFFD55E00},
                                                                     {"optimizer", 0xFFCC79A7},
                                                                     {"other", 0xFF999999}}};

constexpr const KindProperties& properties_of(Kind kind) { return kKindProperties[static_cast<std::size_t>(kind)]; }

}  // namespace tandem::trace
