#pragma once

namespace tandem {

/// True when nobody wants what the calling thread is making for a consumer any more: the launch is ending, or the
/// consumer has gone. Work that may wait for long looks at it and gives up: threads cannot be stopped from outside.
bool work_is_unwanted() noexcept;

}  // namespace tandem
