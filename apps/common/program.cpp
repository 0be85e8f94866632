#include "common/program.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>

#include <c10/util/Exception.h>

#include "common/interrupt.h"
#include "tandem/core/error.h"

namespace apps {
namespace {

void open_standard_streams() {
  for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (::fcntl(stream, F_GETFD) < 0 && errno == EBADF) ::open("/dev/null", O_RDWR);  // gets the least free number
}

// Empty: everything that was printed is written.
std::string problem_of_output() {
  const bool lost = std::ferror(stdout) != 0;
  errno = 0;
  if (std::fflush(stdout) == 0 && !lost) return {};
  const std::string reason = errno != 0 ? std::string(": ") + std::strerror(errno) : "";
  return "standard output cannot be written" + reason;
}

// A rank's failure is told with its rank, but for what is wrong with the configuration, which is all ranks'.
int code_of(const tandem::RankError& error, const std::function<void(const std::string&)>& complain) {
  try {
    error.rethrow_cause();
  } catch (const tandem::ConfigError& cause) {
    complain(cause.what());
    return kWrongUsage;
  } catch (const tandem::Cancelled&) {
    complain("interrupted");
    return kInterrupted;
  } catch (...) {
    complain(error.what());
    return kFailed;
  }
}

}  // namespace

int run_program(const std::string& name, const std::function<int()>& body,
                const std::function<void(const std::string&)>& complain) {
  open_standard_streams();
  std::signal(SIGXFSZ, SIG_IGN);  // what is beyond the limit of a file's size is an error of the write
  const auto begin_and_run = [&] {
    catch_signals(name);
    return body();
  };
  const int code = exit_code_of(begin_and_run, complain);
  const std::string problem = problem_of_output();
  if (!problem.empty()) std::fprintf(stderr, "%s: %s\n", name.c_str(), problem.c_str());
  const int final_code = code == kDone && !problem.empty() ? kFailed : code;
#ifdef __SANITIZE_ADDRESS__
  return final_code;  // it looks for leaks at the end
#else
  std::_Exit(final_code);  // without LibTorch's taking down of its operators, which takes longer than many commands
#endif
}

int exit_code_of(const std::function<int()>& body, const std::function<void(const std::string&)>& complain) {
  const auto end = [&](const char* what, int code) {
    complain(what);
    return code;
  };
  try {
    return body();
  } catch (const tandem::RankError& error) {
    return code_of(error, complain);
  } catch (const tandem::ConfigError& error) {
    return end(error.what(), kWrongUsage);
  } catch (const tandem::Cancelled&) {
    return end("interrupted", kInterrupted);
  } catch (const c10::Error& error) {
    return end(error.what_without_backtrace(), kFailed);
  } catch (const std::exception& error) {
    return end(error.what(), kFailed);
  }
}

}  // namespace apps
