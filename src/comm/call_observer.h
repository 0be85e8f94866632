// Told of the calls in which ranks' hosts wait for each other: for tests that count them.
#pragma once

#include <atomic>

namespace tandem::comm {

struct CallRecord;

/// Called for each call of a rank's, on its thread, before it waits, with what it waits for; null: nobody listens.
extern std::atomic<void (*)(const CallRecord&)> call_observer;

}  // namespace tandem::comm
