#pragma once

#include <stdio.h>
#include <sys/wait.h>

#include <array>
#include <string>

namespace tandem::test {

struct ProgramResult {
  int exit_code;       ///< 128 + signal when one ended it
  std::string output;  ///< standard output and error
};

/// Runs a shell command line.
inline ProgramResult run_program(const std::string& command) {
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  std::string output;
  std::array<char, 4096> part;
  for (std::size_t got; (got = fread(part.data(), 1, part.size(), pipe)) > 0;) output.append(part.data(), got);
  const int status = pclose(pipe);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), output};
}

}  // namespace tandem::test
