// Keeps a peer that has gone from ending this process.
#pragma once

#include <signal.h>

#include <ctime>

namespace tandem::comm {

/// While it lives, the calling thread, and threads that it starts meanwhile for as long as they live, get an error in
/// place of SIGPIPE when they write to whom has gone. Gloo and the store's server write so, and a program that has not
/// said otherwise ends by that signal.
class BrokenPipesAreErrors {
 public:
  BrokenPipesAreErrors() noexcept {
    sigset_t pending;
    sigpending(&pending);
    was_pending_ = sigismember(&pending, SIGPIPE) == 1;
    sigemptyset(&pipe_);
    sigaddset(&pipe_, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe_, &before_);
  }

  ~BrokenPipesAreErrors() {
    const timespec at_once{};
    while (!was_pending_ && sigtimedwait(&pipe_, nullptr, &at_once) == SIGPIPE) {
    }
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }

  BrokenPipesAreErrors(const BrokenPipesAreErrors&) = delete;
  BrokenPipesAreErrors& operator=(const BrokenPipesAreErrors&) = delete;

 private:
  sigset_t pipe_, before_;
  bool was_pending_;
};

}  // namespace tandem::comm
