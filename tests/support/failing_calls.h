#pragma once

#include <string>
#include <vector>

/// System calls of the process that fail when a test says so. The functions of the C library that files go
/// through are defined in failing_calls.cpp, which is linked into the test program.
namespace tandem::test {

/// Names of the calls that writing a checkpoint makes. (read, pread, rename and symlink can fail too, and
/// "fsync-directory": fsync of a directory alone.)
const std::vector<std::string>& failing_calls();

constexpr int kEach = 0;

/// From here on the `nth` (from 1; or kEach) of the calls of `call`, by any thread, fails with `error`, an errno; 0: it
/// moves one byte only, for read and write. EINTR passes with the next call, as everything does.
class FailingCall {
 public:
  FailingCall(const std::string& call, int nth, int error);
  ~FailingCall();
  FailingCall(const FailingCall&) = delete;
  FailingCall& operator=(const FailingCall&) = delete;

  /// Whether the call came.
  bool came() const;
};

}  // namespace tandem::test
