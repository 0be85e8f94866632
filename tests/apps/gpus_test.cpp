// The programs on a machine that seems to have eight GPUs: a fake driver, and a module that is a fake CUDA.
#include "support/train_program.h"
#include "tandem/io/safetensors.h"

using namespace tandem::test;
using Catch::Matchers::ContainsSubstring;

namespace {

ProgramResult on_gpus(const std::string& arguments, const std::string& environment = "") {
  return run_program(environment + " " + std::string(TANDEM_ON_FAKE_MACHINE) + " " + TANDEM_FAKE_GPU_MODULE + " " +
                     TANDEM_FAKE_DRIVER + " " + TANDEM_TRAIN + " " + arguments);
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
  const std::string common =
      " --limit-train-samples 500 --batch-size 32 --epochs 2 --eval-every 0 --threads-per-rank 1 --quiet ";
  for (const auto& [gpus, cpu] : std::vector<std::pair<std::string, std::string>>{
           {"--gpus 1", "--cpu 1"}, {"--gpus 3", "--cpu 3"}, {"--devices 4,4", "--cpu 2"}}) {
    CAPTURE(gpus);
    check_close(losses_on_gpus(gpus + common), losses_of(cpu + common));
  }
  const std::string cnn =
      " --model cnn --limit-train-samples 128 --batch-size 16 --optimizer adamw --max-steps 12 --eval-every 0 "
      "--threads-per-rank 1 --quiet ";
  check_close(losses_on_gpus("--gpus 2" + cnn), losses_of("--cpu 2" + cnn));
}

TEST_CASE("train takes all GPUs that there are, and says so") {
  const auto result = on_gpus("--limit-train-samples 512 --max-steps 2");
  CAPTURE(result.output);
  CHECK(result.exit_code == 0);
  CHECK_THAT(result.output, ContainsSubstring("training mlp on 8 GPU ranks (all GPUs)"));
  CHECK_THAT(on_gpus("--gpus 9").output, ContainsSubstring("gpus 9, but this machine has 8"));
}

namespace {

void check_same_weights(const std::string& path, const std::string& other) {
  const auto a = tandem::io::load_safetensors(path), b = tandem::io::load_safetensors(other);
  REQUIRE(a.size() == b.size());
  for (std::size_t i = 0; i < a.size(); ++i) CHECK(at::equal(a[i].second, b[i].second));
}

}  // namespace

TEST_CASE("a batch size of auto is the largest that fits, and trains as if it had been given") {
  const TempDir dir;
  // Images of 3,136 bytes: 512 of them are 1,605,632.
  const std::string memory = "TANDEM_FAKE_LARGEST_TENSOR=3000000",
                    flags =
                        " --hidden 16 --limit-train-samples 4000 --max-steps 3 --threads-per-rank 1 --save-weights ";
  for (const std::string& ranks :
       std::vector<std::string>{"--gpus 1", "--gpus 2 --split-batches", "--gpus 1 --cuda-graphs",
                                "--gpus 2 --gradient-accumulation-steps 3 --ema 0.9 --clip-grad-norm 1"}) {
    const auto found = on_gpus(ranks + flags + (dir / "auto") + " --batch-size auto", memory);
    CAPTURE(ranks, found.output);
    REQUIRE(found.exit_code == 0);
    CHECK_THAT(found.output, ContainsSubstring("batch size 512: the largest power of two that fits into memory"));
    const std::string given = ranks.find("--split") == std::string::npos ? "512" : "1024";
    REQUIRE(on_gpus(ranks + flags + (dir / "given") + " --batch-size " + given, memory).exit_code == 0);
    check_same_weights(dir / "auto", dir / "given");
  }
}

TEST_CASE("a batch size of auto ends at the training set, and where nothing fits") {
  const std::string flags = " --hidden 16 --max-steps 1 --batch-size auto --limit-train-samples ";
  CHECK_THAT(on_gpus("--gpus 2" + flags + "150").output,
             ContainsSubstring("batch size 64: twice as many would be more than the training set has"));
  CHECK_THAT(on_gpus("--gpus 2" + flags + "1").output, ContainsSubstring("batch size 1: twice as many"));
  const TempDir dir;
  const std::string gpt = "--model gpt --layers 1 --width 32 --heads 2 --data-file " + write_text(dir, 9000);
  for (const auto& [network, problem] : std::vector<std::pair<std::string, std::string>>{
           {"--model cnn", "a batch of one sample does not fit"},
           {gpt, "the 32 samples that the network is judged by at a time do not fit"}}) {
    const auto none =
        on_gpus("--gpus 1 --max-steps 1 --batch-size auto " + network, "TANDEM_FAKE_LARGEST_TENSOR=600000");
    CAPTURE(none.output);
    CHECK(none.exit_code == 2);
    CHECK_THAT(none.output, ContainsSubstring("--batch-size auto: " + problem));
  }
}

TEST_CASE("a batch size of auto fits on each GPU, also where one has less memory than the others") {
  const auto result = on_gpus("--gpus 3 --hidden 16 --max-steps 1 --batch-size auto --limit-train-samples 6000",
                              "TANDEM_FAKE_LARGEST_TENSOR=3000000 TANDEM_FAKE_SMALL_DEVICE=1");
  CAPTURE(result.output);
  CHECK(result.exit_code == 0);
  CHECK_THAT(result.output, ContainsSubstring("batch size 512: the largest power of two that fits into memory"));
}

TEST_CASE("on CPU ranks a batch size of auto tries no more than 64, is recorded, and is gone on with on other ranks") {
  const TempDir dir;
  const std::string flags = " --hidden 16 --limit-train-samples 600 --threads-per-rank 1 --no-progress ";
  const std::string checkpoints = " --checkpoint-dir " + (dir / "c") + " --log-with jsonl --project-dir " + (dir / "p");
  const auto begun =
      run_train("--cpu 2 --batch-size auto --epochs 1 --save-weights " + (dir / "auto") + flags + checkpoints);
  CAPTURE(begun.output);
  REQUIRE(begun.exit_code == 0);
  CHECK_THAT(begun.output, ContainsSubstring("batch size 64: more is not tried on CPU ranks"));
  REQUIRE(run_train("--cpu 2 --batch-size 64 --epochs 1 --save-weights " + (dir / "given") + flags).exit_code == 0);
  check_same_weights(dir / "auto", dir / "given");
  const auto recorded = read_log(dir / "p/log.jsonl").at(0).at("config");
  CHECK(recorded.at("batch-size") == 64);
  CHECK(recorded.at("global-batch-size") == 128);
  for (const std::string& batch : std::vector<std::string>{"", "--batch-size auto"}) {
    const auto resumed = run_train("--cpu 1 --epochs 2 " + batch + flags + " --resume " + (dir / "c/checkpoint_0") +
                                   " --log-json " + (dir / "log"));
    CAPTURE(batch, resumed.output);
    CHECK(resumed.exit_code == 0);
    CHECK_THAT(resumed.output, !ContainsSubstring("not tried"));
    CHECK(read_log(dir / "log").size() == 5 + 1);
    std::filesystem::remove(dir / "log");
  }
}

TEST_CASE("CUDA graphs are used where that is faster, with the numbers of called steps") {
  const std::string flags =
      " --hidden 16 --limit-train-samples 2000 --batch-size 32 --max-steps 30 --scheduler cosine --threads-per-rank 1 "
      "--no-progress ";
  for (const std::string& ranks : std::vector<std::string>{"--gpus 1", "--gpus 2"}) {
    const TempDir dir;
    const auto trained = [&](const std::string& name, const std::string& graphs) {
      const auto result =
          on_gpus(ranks + flags + graphs + " --log-json " + (dir / name + ".log") + " --save-weights " + (dir / name));
      CAPTURE(ranks, graphs, result.output);
      REQUIRE(result.exit_code == 0);
      return result.output;
    };
    const auto check_as_called = [&](const std::string& name) {
      CAPTURE(name);
      check_same_weights(dir / name, dir / "off");
      const auto log = read_log(dir / name + ".log"), off = read_log(dir / "off.log");
      REQUIRE(log.size() == 31);
      for (std::size_t i = 0; i + 1 < log.size(); ++i)
        for (const char* value : {"loss", "grad_norm"}) CHECK(log[i].at(value) == off.at(i).at(value));
    };
    CHECK_THAT(trained("off", "--cuda-graphs off"), !ContainsSubstring("CUDA graphs"));
    CHECK_THAT(trained("default", ""),
               ContainsSubstring("ms called, ") && ContainsSubstring("replayed as CUDA graphs ("));
    check_as_called("default");
    CHECK_THAT(trained("auto", "--cuda-graphs auto"), ContainsSubstring("replayed as CUDA graphs ("));
    check_as_called("auto");
    for (const std::string& on : std::vector<std::string>{"--cuda-graphs", "--cuda-graphs on", "--cuda-graphs=on"}) {
      CHECK_THAT(trained("on", on), ContainsSubstring("27 steps were replayed as CUDA graphs"));
      check_as_called("on");
    }
  }
}

TEST_CASE("why steps are not replayed as CUDA graphs is told where there are GPUs") {
  const std::string flags = " --hidden 16 --limit-train-samples 2000 --batch-size 32 --max-steps 6 --no-progress ";
  const auto two = on_gpus("--gpus 1 --gradient-accumulation-steps 2" + flags);
  CHECK_THAT(two.output,
             ContainsSubstring("steps were called, not replayed as CUDA graphs: a window of several micro"));
  const auto three = on_gpus("--gpus 3" + flags);
  CHECK_THAT(three.output, ContainsSubstring("NCCL would sum more than two ranks' gradients in another order"));
  CHECK_THAT(run_train("--cpu 1" + flags).output, !ContainsSubstring("CUDA graphs"));
  CHECK_THAT(run_train("--cpu 1 --cuda-graphs" + flags).output,
             ContainsSubstring("0 steps were replayed as CUDA graphs; the last was not: CPU ranks have no graphs"));
  const auto wrong = run_train("--cuda-graphs maybe");
  CHECK(wrong.exit_code == 2);
  CHECK_THAT(wrong.output, ContainsSubstring("maybe not in {auto,off,on}"));
}
