// What the hosts have fake devices do, and how often they wait, counted for tests that ask for it.
#pragma once

#include <map>
#include <string>

namespace tandem::test::fake {

/// Begins to count, from 0. Before, nothing is counted: looking for who waits takes long.
void count_from_now();

/// How often a host has waited since, by kind and by the functions of Tandem's that were being called: "item in
/// train::f, called by train::g". A copy from pageable memory counts, and waiting for what is done already: on a real
/// device nobody knows.
std::map<std::string, int> host_waits();

/// What hosts have had devices do since, by the operators' names: a kernel each, or more. Copies count, views do not.
std::map<std::string, int> launches();

/// Counts a wait of the calling thread's, of this kind: "item" and so on. `of`: what there; both are string literals.
void note_wait(const char* kind, const char* of = "");

/// Counts something that a device is to do.
void note_launch(const std::string& name);

}  // namespace tandem::test::fake
