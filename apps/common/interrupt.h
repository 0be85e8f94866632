// What signals do to a program.
#pragma once

#include <functional>
#include <stop_token>
#include <string>

namespace apps {

/// From now on a signal that asks for an end (SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGXCPU) ends the process with
/// kInterrupted. One that is ignored stays ignored, as nohup and shells want it. At the start of main, before there are
/// other threads: they inherit that these signals wait for one thread, which may do what no signal handler may.
void catch_signals(const std::string& program);

/// From now on the first signal only requests a stop, of this token. What comes within a second is the same request,
/// for some send their signal twice. Later, one of the same kind ends the process at once; before, it tells what `cost`
/// says, on the thread of the signals. SIGINT and SIGTERM are one kind; each of the others, which announce an end that
/// comes later, is one for itself, and SIGXCPU, which the kernel repeats each second, is no second one.
/// `announces`: the first one is told too.
std::stop_token stop_at_signals(std::function<std::string()> cost, bool announces);

/// `work` is done before a signal ends the process from now on, on the thread of the signals. Without catch_signals
/// there is no such end.
void before_end_by_signal(std::function<void()> work);

/// Whether a stop was requested by a signal. Any thread.
bool interrupted();

}  // namespace apps
