// The programs on a machine that seems to have eight GPUs: a fake driver, and a module that is a fake CUDA.
#include "support/train_program.h"

using namespace tandem::test;
using Catch::Matchers::ContainsSubstring;

namespace {

ProgramResult on_gpus(const std::string& arguments) {
  return run_program(std::string(TANDEM_ON_FAKE_MACHINE) + " " + TANDEM_FAKE_GPU_MODULE + " " + TANDEM_FAKE_DRIVER +
                     " " + TANDEM_TRAIN + " " + arguments);
}

std::vector<double> losses_on_gpus(const std::string& arguments) {
  const TempDir dir;
  const auto result = on_gpus(arguments + " --log-json " + (dir / "log"));
  CAPTURE(arguments, result.output);
  REQUIRE(result.exit_code == 0);
  std::vector<double> losses;
  for (const auto& line : read_log(dir / "log"))
    if (line.contains("loss")) losses.push_back(line["loss"]);
  return losses;
}

void check_close(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  REQUIRE(!a.empty());
  for (std::size_t i = 0; i < a.size(); ++i) CHECK(a[i] == Approx(b[i]).epsilon(1e-4));
}

}  // namespace

TEST_CASE("train on GPUs has the losses of as many CPU ranks") {
  const std::string common = " --limit-train-samples 500 --batch-size 32 --epochs 2 --threads-per-rank 1 --quiet ";
  for (const auto& [gpus, cpu] : std::vector<std::pair<std::string, std::string>>{
           {"--gpus 1", "--cpu 1"}, {"--gpus 3", "--cpu 3"}, {"--devices 4,4", "--cpu 2"}}) {
    CAPTURE(gpus);
    check_close(losses_on_gpus(gpus + common), losses_of(cpu + common));
  }
  const std::string cnn =
      " --model cnn --limit-train-samples 128 --batch-size 16 --optimizer adamw --threads-per-rank 1 --quiet ";
  check_close(losses_on_gpus("--gpus 2" + cnn), losses_of("--cpu 2" + cnn));
}

TEST_CASE("train takes all GPUs that there are, and says so") {
  const auto result = on_gpus("--limit-train-samples 512 --max-steps 2");
  CAPTURE(result.output);
  CHECK(result.exit_code == 0);
  CHECK_THAT(result.output, ContainsSubstring("training mlp on 8 GPU ranks (all GPUs)"));
  CHECK_THAT(on_gpus("--gpus 9").output, ContainsSubstring("gpus 9, but this machine has 8"));
}
