// Who waits, counted by where it was called.
#pragma once

#include <map>
#include <string>

namespace tandem::test::fake {

/// Counts one of the calling thread's, of this kind: "item" and so on. `of`: what there; both are string literals. Does
/// nothing before `count_waits`: looking for the caller takes long.
void note_wait(const char* kind, const char* of = "");

/// Begins to count, from 0.
void count_waits();

bool counts_waits();

/// All that were counted, by kind and by the functions of Tandem's that were being called.
std::map<std::string, int> waits_by_place();

}  // namespace tandem::test::fake
