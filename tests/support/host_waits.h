// Who waits, counted by where it was called.
#pragma once

#include <map>
#include <string>

namespace tandem::test::fake {

/// Counts one of the calling thread's, of this kind: "item" and so on. `of`: what there; both are string literals.
void note_wait(const char* kind, const char* of = "");

/// All since `forget_waits`, by kind and by the functions of Tandem's that were being called.
std::map<std::string, int> waits_by_place();

void forget_waits();

}  // namespace tandem::test::fake
