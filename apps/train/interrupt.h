#pragma once

namespace train {

/// From now on Ctrl-C (SIGINT) and SIGTERM ask for a stop at the next step; a second one ends the process with 130.
void catch_interrupts();

/// True once a stop was asked for. Any thread.
bool interrupted();

}  // namespace train
