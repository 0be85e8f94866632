#pragma once

#include "common/interrupt.h"
#include "tandem/tandem.h"

namespace train {

/// Whether a signal asks for a stop. One rank sees it first; all must stop at the same place. Collective.
inline bool stop_is_asked(tandem::Accelerator& accelerator) {
  if (apps::interrupted()) accelerator.set_trigger();
  return accelerator.check_trigger();
}

}  // namespace train
