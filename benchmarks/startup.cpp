// startup: from the start of `train` to the end of its first step, MNIST read and unpacked included, as a ratio to the
// whole run of a LibTorch program that makes one tensor and exits. Both alternate; the figure is the median of the
// pairs' ratios. Goal: at most 2.2.
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "measure/statistics.h"

namespace {

// Seconds from the start of a program to its end.
double run(std::vector<std::string> arguments) {
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const auto start = std::chrono::steady_clock::now();
  pid_t child = 0;
  int status = 0;
  if (posix_spawn(&child, argv[0], nullptr, nullptr, argv.data(), environ) != 0 || waitpid(child, &status, 0) < 0 ||
      status != 0)
    throw std::runtime_error(arguments[0] + " failed");
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// What `train` says itself of its first step.
double startup_seconds(const std::string& log) {
  std::ifstream file(log);
  std::string line, last;
  while (std::getline(file, line)) last = line;
  return nlohmann::json::parse(last)["final"]["startup_seconds"].get<double>();
}

}  // namespace

int main(int argc, char** argv) {
  const int pairs = argc > 1 ? std::atoi(argv[1]) : 21;
  const std::string log = (std::filesystem::temp_directory_path() / ("startup-" + std::to_string(getpid()))).string();
  std::vector<double> tensor, whole, startup, ratios, whole_ratios;
  for (int pair = 0; pair < pairs; ++pair) {
    tensor.push_back(run({TANDEM_ONE_TENSOR}));
    whole.push_back(run({TANDEM_TRAIN, "--cpu", "2", "--max-steps", "1", "--quiet", "--log-json", log}));
    startup.push_back(startup_seconds(log));
    ratios.push_back(startup.back() / tensor.back());
    whole_ratios.push_back(whole.back() / tensor.back());
  }
  std::filesystem::remove(log);
  const auto print = [](const char* name, const std::vector<double>& values) {
    const auto spread = measure::spread_of(values);
    std::printf("%-44s  %7.3f  %6.3f  %6.3f\n", name, spread.median, spread.min, spread.max);
  };
  std::puts("                                               median     min     max");
  print("one tensor, s", tensor);
  print("train, start to first step (as it says), s", startup);
  print("train --max-steps 1, whole run with test, s", whole);
  print("ratio: first step / one tensor", ratios);
  print("ratio: whole run / one tensor", whole_ratios);
}
