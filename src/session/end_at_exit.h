#pragma once

#include <memory>

namespace tandem {

class SessionRun;

/// Has `run` cancelled and waited for when the program calls exit or returns from main while it goes on: what its
/// threads use is destroyed then.
void end_at_exit(const std::shared_ptr<SessionRun>& run);

/// To be called when training has begun. What is made until then, as LibTorch makes much when it is first used, is
/// destroyed after the runs have ended: programs destroy first what was made last.
void outlive_what_was_made() noexcept;

}  // namespace tandem
