// What all programs have in common: how they begin and end.
#pragma once

#include <functional>
#include <string>

namespace apps {

inline constexpr int kDone = 0;
inline constexpr int kFailed = 1;
inline constexpr int kWrongUsage = 2;  ///< or a configuration that does not fit
inline constexpr int kInterrupted = 130;

/// Runs a program named `name` as said in exit_code_of, with signals as said in interrupt.h. Standard streams that the
/// caller has closed are /dev/null, so that no file gets their numbers, and with them what is printed. What cannot be
/// written to standard output is a failure. Ends the process, without destructors of static objects (with
/// AddressSanitizer it returns the exit code). At the start of main.
int run_program(const std::string& name, const std::function<int()>& body,
                const std::function<void(const std::string&)>& complain);

/// Calls `body` and returns the exit code that it returns. What it throws is given to `complain` as a sentence, and
/// becomes a code: tandem::ConfigError, on whatever rank, is wrong usage, tandem::Cancelled an interrupt.
int exit_code_of(const std::function<int()>& body, const std::function<void(const std::string&)>& complain);

}  // namespace apps
