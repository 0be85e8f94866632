// optimizers: the fused steps, each beside torch::optim's own step or beside the time that its memory traffic takes. 1
// intra-op thread; what is compared alternates in one process, and the figures are medians of the thread's own time
// (which other programs on the machine do not count in).
#include <cstdio>
#include <string>
#include <tuple>

#include <ATen/Parallel.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "measure/optimizer_step.h"

namespace {

bool as_json = false;

void print(const std::string& what, double fused, const char* peer, double other, double ratio, const char* goal) {
  if (as_json)
    std::printf("%s\n", nlohmann::ordered_json{{"benchmark", "optimizers"},
                                               {"what", what},
                                               {"fused_ms", fused * 1e3},
                                               {"peer", peer},
                                               {"peer_ms", other * 1e3},
                                               {"ratio", ratio}}
                            .dump()
                            .c_str());
  else
    std::printf("%-34s fused %9.3f ms   %-22s %9.3f ms   ratio %6.2f   %s\n", what.c_str(), fused * 1e3, peer,
                other * 1e3, ratio, goal);
  std::fflush(stdout);
}

void print(const std::string& what, const char* peer, const measure::StepTimes& times, const char* goal, bool inverse) {
  const double ratio = inverse ? times.fused / times.peer : times.peer / times.fused;
  print(what, times.fused, peer, times.peer, ratio, goal);
}

}  // namespace

int main(int argc, char** argv) {
  std::int64_t millions = 100;
  int runs = 15;
  CLI::App app("Fused optimizer steps beside torch::optim's and beside their memory traffic", "optimizers");
  app.add_option("--millions", millions, "elements of the large parameter (16 bytes each)")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  app.add_option("--runs", runs, "steps of each, for the large parameter; 20 times as many for the small ones")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_flag("--json", as_json, "print one JSON object a figure");
  CLI11_PARSE(app, argc, argv);

  at::set_num_threads(1);
  for (const auto& [optimizer, name, goal] : {std::tuple{measure::Optimizer::adamw, "AdamW", "at least 5"},
                                              {measure::Optimizer::adam, "Adam", ""},
                                              {measure::Optimizer::sgd, "SGD with momentum", ""}})
    print(std::string(name) + ", 100 of 64 x 64", "torch::optim", measure::step_of_small_tensors(optimizer, runs), goal,
          false);
  print("AdamW, " + std::to_string(millions) + " million", "4 reads and 3 writes",
        measure::step_of_large_tensor(millions * 1'000'000, runs), "at most 1.2", true);
}
