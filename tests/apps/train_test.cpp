// build/apps/train as its user sees it: exit codes, messages, files.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <numbers>
#include <thread>

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>

#include "support/catch.h"
#include "support/file_bytes.h"
#include "support/temp_dir.h"
#include "support/train_program.h"
#include "tandem/data/mnist.h"
#include "tandem/io/safetensors.h"

using namespace tandem;
using tandem::test::read_log;
using tandem::test::run_train;
using tandem::test::TempDir;

namespace {

// A training that goes on until it is interrupted, with its output, log and weights in a directory.
class EndlessTraining {
 public:
  // Returns once it trains.
  explicit EndlessTraining(const TempDir& dir) : dir_(dir), child_(fork()) {
    if (child_ == 0) {
      const int output = open((dir / "out").c_str(), O_CREAT | O_WRONLY, 0600);
      dup2(output, STDOUT_FILENO);
      dup2(output, STDERR_FILENO);
      execl(TANDEM_TRAIN, "train", "--cpu", "2", "--hidden", "16", "--epochs", "100000", "--no-progress", "--log-json",
            (dir / "log").c_str(), "--save-weights", (dir / "w").c_str(), nullptr);
      _exit(99);
    }
    for (int i = 0; i < 3000 && read_log(dir / "log").size() < 3; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }

  void signal(int number) const { kill(child_, number); }

  test::ProgramResult wait() const {
    int status = 0;
    waitpid(child_, &status, 0);
    std::ifstream file(dir_ / "out");
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
            std::string((std::istreambuf_iterator<char>(file)), {})};
  }

 private:
  const TempDir& dir_;
  const pid_t child_;
};

const std::string kShortRun = "--cpu 2 --hidden 16 --limit-train-samples 400 --epochs 1 --batch-size 20 ";

}  // namespace

TEST_CASE("a short training writes its log and weights and says how it went") {
  TempDir dir;
  const auto result = run_train(kShortRun + "--log-json " + (dir / "log") + " --save-weights " + (dir / "w"));
  CHECK(result.exit_code == 0);
  CHECK_THAT(result.output, ContainsSubstring("training mlp on 2 CPU ranks") && ContainsSubstring("test accuracy"));
  const auto log = read_log(dir / "log");
  REQUIRE(log.size() == 11);
  for (std::size_t i = 0; i < 10; ++i) {
    CHECK(log[i]["step"] == i + 1);
    CHECK(log[i]["epoch"] == 0);
    for (const char* key : {"loss", "grad_norm", "lr", "samples_per_second"}) CHECK(log[i][key].get<double>() > 0);
  }
  for (const char* key : {"accuracy", "train_seconds", "samples_per_second", "startup_seconds", "peak_rss_mb"})
    CHECK(log[10]["final"][key].get<double>() > 0);
  const auto weights = io::load_safetensors(dir / "w");
  std::vector<std::string> names;
  for (const auto& [name, tensor] : weights) names.push_back(name);
  CHECK(names == std::vector<std::string>{"0.weight", "0.bias", "2.weight", "2.bias"});
}

TEST_CASE("the loss curve is a plain loop's, on 1, 2 and 4 ranks with the same global batch") {
  TempDir dir;
  const int samples = 64 * 20;
  torch::manual_seed(3);
  torch::nn::Sequential net(torch::nn::Linear(784, 32), torch::nn::ReLU(), torch::nn::Linear(32, 10));
  io::NamedTensors initial;
  for (const auto& parameter : net->named_parameters()) initial.emplace_back(parameter.key(), parameter.value());
  io::save_safetensors(dir / "init", initial);
  std::vector<at::Tensor> matrices, biases;
  for (const auto& parameter : net->parameters()) (parameter.dim() > 1 ? matrices : biases).push_back(parameter);
  torch::optim::AdamW adamw(matrices, torch::optim::AdamWOptions(1e-3).weight_decay(0.01));
  adamw.add_param_group(
      {biases, std::make_unique<torch::optim::AdamWOptions>(torch::optim::AdamWOptions(1e-3).weight_decay(0.0))});
  auto data = data::mnist(std::string(std::getenv("TANDEM_SOURCE_DIR")) + "/data/mnist");
  std::vector<double> expected;
  for (int epoch = 0; epoch < 3; ++epoch)
    for (int at = 0; at < samples; at += 64) {
      std::vector<std::size_t> indices;
      for (int i = at; i < at + 64; ++i) indices.push_back(static_cast<std::size_t>(i));
      const auto batch = data.get_batch(indices);
      auto loss = torch::nn::functional::cross_entropy(net->forward(batch.data.flatten(1)), batch.target);
      expected.push_back(loss.item<double>());
      adamw.zero_grad();
      loss.backward();
      adamw.step();
    }
  for (const std::string ranks : {"1", "2", "4"}) {
    const auto result = run_train(
        "--cpu " + ranks + " --hidden 32 --no-shuffle --global-batch-size 64 --epochs 3 --limit-train-samples " +
        std::to_string(samples) + " --init-weights " + (dir / "init") + " --log-json " + (dir / "log"));
    REQUIRE(result.exit_code == 0);
    const auto log = read_log(dir / "log");
    REQUIRE(log.size() == expected.size() + 1);
    for (std::size_t i = 0; i < expected.size(); ++i)
      CHECK(std::abs(log[i]["loss"].get<double>() - expected[i]) <= 1e-5 * expected[i]);
  }
}

TEST_CASE("the same command gives the same weights to the bit") {
  TempDir dir;
  const std::string precision = GENERATE("no", "bf16", "fp16");
  for (const std::string name : {"a", "b"})
    REQUIRE(
        run_train(kShortRun + "--quiet --mixed-precision " + precision + " --save-weights " + (dir / name)).exit_code ==
        0);
  const auto a = io::load_safetensors(dir / "a"), b = io::load_safetensors(dir / "b");
  for (std::size_t i = 0; i < a.size(); ++i) CHECK(at::equal(a[i].second, b[i].second));
}

TEST_CASE("every way to batch works, on 1 to 4 ranks, on a training set that does not divide") {
  const int ranks = GENERATE(1, 2, 3, 4);
  for (const std::string flags :
       {"", "--drop-last", "--no-even-batches", "--split-batches --batch-size 12", "--dispatch-batches",
        "--dispatch-batches --split-batches --batch-size 12", "--gradient-accumulation-steps 4",
        "--no-even-batches --gradient-accumulation-steps 3", "--no-even-batches --scheduler plateau",
        "--clip-grad-norm 0.5 --optimizer sgd --momentum 0.9"}) {
    CAPTURE(ranks, flags);
    const std::string batch = flags.find("--batch-size") == std::string::npos ? "--batch-size 8 " : "";
    const auto result = run_train("--cpu " + std::to_string(ranks) +
                                  " --hidden 8 --limit-train-samples 101 --epochs 2 " + batch + flags);
    CHECK(result.exit_code == 0);
    CHECK_THAT(result.output, ContainsSubstring("test accuracy"));
  }
}

TEST_CASE("mixed precision trains either model to a loss near float32's, and says so") {
  // The cnn in float16 takes a minute on a CPU.
  const auto [model, precision] = GENERATE(
      table<std::string, std::string>({{"mlp --hidden 32", "bf16"}, {"mlp --hidden 32", "fp16"}, {"cnn", "bf16"}}));
  const auto losses_in = [&model = model](const std::string& format) {
    const TempDir dir;
    const auto result = run_train(
        "--cpu 2 --limit-train-samples 640 --batch-size 32 --max-steps 18 --epochs 2 --eval-every 0 --model " + model +
        " --mixed-precision " + format + " --log-json " + (dir / "log"));
    CHECK(result.exit_code == 0);
    CHECK_THAT(result.output, ContainsSubstring(format == "no" ? " on 2 CPU ranks" : " in " + format + " on 2"));
    std::vector<double> losses;
    for (const auto& line : read_log(dir / "log"))
      if (line.contains("loss")) losses.push_back(line["loss"]);
    REQUIRE(losses.size() == 18);
    return losses;
  };
  const auto plain = losses_in("no"), mixed = losses_in(precision);
  CAPTURE(plain.back(), mixed.back());
  CHECK(mixed.back() != plain.back());
  CHECK(std::abs(mixed.back() - plain.back()) < 0.1 * (plain.front() - plain.back()));
}

TEST_CASE("max-steps counts updates over all epochs") {
  TempDir dir;
  REQUIRE(run_train("--cpu 2 --hidden 16 --limit-train-samples 400 --batch-size 20 --epochs 5 --max-steps 7 "
                    "--gradient-accumulation-steps 3 --log-json " +
                    (dir / "log"))
              .exit_code == 0);
  const auto log = read_log(dir / "log");
  REQUIRE(log.size() == 8);
  CHECK(log[6]["epoch"] == 1);  // 4 updates an epoch
}

TEST_CASE("the learning rate takes the course of each scheduler, over all updates") {
  const auto fall = [](double part) { return (1 + std::cos(std::numbers::pi * part)) / 2; };
  const auto one_cycle = [&](double update) { return 4e-6 + (1 - 4e-6) * fall((update - 5.3) / (20 - 5.3)); };
  struct Case {
    std::string flags;
    std::vector<double> factors;  // of --lr, at updates 1, 11, 20 and 21 of 21
  };
  const std::vector<Case> cases{
      {"", {1, 1, 1, 1}},
      {"--warmup-steps 4", {0.25, 1, 1, 1}},
      {"--scheduler step", {1, 0.1, 0.01, 0.01}},
      {"--scheduler multi-step", {1, 1, 0.01, 0.01}},
      {"--scheduler exponential", {1, std::pow(0.01, 10.0 / 21), std::pow(0.01, 19.0 / 21), std::pow(0.01, 20.0 / 21)}},
      {"--scheduler linear --warmup-steps 1", {1, 0.55, 0.1, 0.05}},
      {"--scheduler polynomial --warmup-steps 1", {1, 0.3025, 0.01, 0.0025}},
      {"--scheduler cosine --warmup-steps 9", {1.0 / 9, fall(1.0 / 12), fall(10.0 / 12), fall(11.0 / 12)}},
      {"--scheduler cosine-restarts", {1, fall(1.0 / 12), fall(10.0 / 12), fall(11.0 / 12)}},
      {"--scheduler one-cycle", {0.04, one_cycle(10), one_cycle(19), 4e-6}},
      {"--scheduler one-cycle --optimizer sgd", {0.04, one_cycle(10), one_cycle(19), 4e-6}}};
  for (const auto& c : cases) {
    CAPTURE(c.flags);
    const TempDir dir;
    REQUIRE(run_train("--cpu 2 --hidden 8 --limit-train-samples 280 --batch-size 20 --epochs 3 --lr 0.01 " + c.flags +
                      " --log-json " + (dir / "log"))
                .exit_code == 0);
    const auto log = read_log(dir / "log");
    REQUIRE(log.size() == 22);
    const std::vector<std::size_t> lines{0, 10, 19, 20};
    for (std::size_t i = 0; i < lines.size(); ++i)
      CHECK(log[lines[i]]["lr"].get<double>() == Approx(0.01 * c.factors[i]));
  }
}

TEST_CASE("plateau lowers the learning rate after two epochs whose loss did not fall") {
  const TempDir dir;
  // Rates that change nothing: the loss of every epoch is the same.
  REQUIRE(
      run_train("--cpu 2 --hidden 16 --limit-train-samples 400 --batch-size 20 --epochs 6 --optimizer sgd --lr 1e-6 "
                "--scheduler plateau --log-json " +
                (dir / "log"))
          .exit_code == 0);
  const auto log = read_log(dir / "log");
  REQUIRE(log.size() == 61);
  const std::vector<double> by_epoch{1e-6, 1e-6, 1e-6, 1e-7, 1e-7, 1e-8};
  for (std::size_t i = 0; i < 60; ++i) CHECK(log[i]["lr"].get<double>() == Approx(by_epoch[i / 10]));
}

TEST_CASE("quiet prints nothing") { CHECK(run_train(kShortRun + "--quiet").output.empty()); }

TEST_CASE("wrong arguments get one sentence that names flag and value, and exit code 2") {
  struct Case {
    std::string arguments;
    std::vector<std::string> words;
  };
  TempDir dir;
  const std::vector<Case> cases{
      {"--gpus 8", {"--gpus 8", "no GPU is usable"}},
      {"--devices 0,1", {"--devices", "no GPU is usable"}},
      {"--cpu 0", {"--cpu", "0"}},
      {"--cpu two", {"--cpu", "two"}},
      {"--cpu 2 --gpus 1", {"--cpu", "--gpus"}},
      {"--cpu 2 --model rnn", {"--model", "rnn", "mlp", "a file of TorchScript, whose name ends with .pt"}},
      {"--cpu 2 --optimizer shampoo", {"--optimizer", "shampoo", "adamw"}},
      {"--cpu 2 --normalize x", {"--normalize", "x", "mnist"}},
      {"--cpu 2 --hidden 0", {"--hidden", "0"}},
      {"--cpu 2 --hidden 5,x", {"--hidden", "x"}},
      {"--cpu 2 --epochs 0", {"--epochs", "0"}},
      {"--cpu 2 --epochs 1.5", {"--epochs", "1.5"}},
      {"--cpu 2 --epochs 99999999999999999999", {"--epochs", "99999999999999999999"}},
      {"--cpu 2 --max-steps -3", {"--max-steps", "-3"}},
      {"--cpu 2 --batch-size 0", {"--batch-size", "0"}},
      {"--cpu 2 --batch-size 1.5", {"--batch-size", "1.5", "auto"}},
      {"--cpu 2 --batch-size Auto", {"--batch-size", "Auto", "auto"}},
      {"--cpu 2 --batch-size auto --global-batch-size 16", {"--batch-size", "--global-batch-size"}},
      {"--cpu 2 --batch-size 8 --global-batch-size 16", {"--batch-size", "--global-batch-size"}},
      {"--cpu 3 --global-batch-size 64", {"--global-batch-size 64", "3 ranks"}},
      {"--cpu 3 --split-batches --batch-size 64", {"--batch-size 64", "3 ranks"}},
      {"--cpu 2 --lr nan", {"--lr", "nan"}},
      {"--cpu 2 --lr -1", {"--lr", "-1"}},
      {"--cpu 2 --momentum 2 --optimizer sgd", {"--momentum", "2"}},
      {"--cpu 2 --momentum 0.5", {"--momentum", "sgd"}},
      {"--cpu 2 --weight-decay -1", {"--weight-decay", "-1"}},
      {"--cpu 2 --clip-grad-norm 0", {"--clip-grad-norm", "0"}},
      {"--cpu 2 --scheduler sawtooth", {"--scheduler", "sawtooth", "cosine-restarts"}},
      {"--cpu 2 --warmup-steps -1", {"--warmup-steps", "-1"}},
      {"--cpu 2 --warmup-steps 9 --scheduler one-cycle", {"--warmup-steps", "one-cycle"}},
      {"--cpu 2 --warmup-steps 9 --scheduler plateau", {"--warmup-steps", "plateau"}},
      {"--cpu 2 --warmup-steps 7 --max-steps 7", {"--warmup-steps 7", "7 updates"}},
      {"--cpu 2 --gradient-accumulation-steps 0", {"--gradient-accumulation-steps", "0"}},
      {"--cpu 2 --mixed-precision fp8", {"--mixed-precision", "fp8", "no", "bf16", "fp16"}},
      {"--cpu 2 --threads-per-rank 0", {"--threads-per-rank", "0"}},
      {"--cpu 2 --seed x", {"--seed", "x"}},
      {"--cpu 2 --seed -1", {"--seed", "-1"}},
      {"--cpu 2 --limit-train-samples 0", {"--limit-train-samples", "0"}},
      {"--cpu 2 --limit-train-samples 10 --batch-size 8 --drop-last", {"--drop-last", "10"}},
      {"--cpu 2 --data-dir /nowhere", {"--data-dir", "/nowhere"}},
      {"--cpu 2 --profile /dev/null/p", {"--profile", "/dev/null/p"}},
      {"--cpu 2 --profile-steps 1:2", {"--profile-steps", "--profile"}},
      {"--cpu 2 --profile p --profile-steps 10", {"--profile-steps 10", "FIRST:LAST"}},
      {"--cpu 2 --profile p --profile-steps 0:5", {"--profile-steps 0:5", "counted from 1"}},
      {"--cpu 2 --profile p --profile-steps -1:5", {"--profile-steps -1:5", "FIRST:LAST"}},
      {"--cpu 2 --profile p --profile-steps 1:5x", {"--profile-steps 1:5x", "FIRST:LAST"}},
      {"--cpu 2 --profile p --profile-steps 1:99999999999999999999", {"--profile-steps", "FIRST:LAST"}},
      {"--cpu 2 --profile p --profile-steps 9:8", {"--profile-steps 9:8", "before it begins"}},
      {"--cpu 2 --profile " + dir / "p" + " --max-steps 12", {"--profile-steps 10:20", "12 updates"}},
      {"--cpu 2 --save-weights /nowhere/w", {"--save-weights", "/nowhere"}},
      {"--cpu 2 --log-json " + dir.path(), {"--log-json", dir.path()}},
      {"--cpu 2 --init-weights /nowhere", {"--init-weights", "/nowhere"}},
      {"--cpu 2 --data-file /nowhere", {"--data-file", "/nowhere: does not exist\n"}},
      {"--cpu 2 --data-file x --data-dir y", {"--data-file", "--data-dir"}},
      {"--cpu 2 --val-split 0.5", {"--val-split", "MNIST"}},
      {"--cpu 2 --val-file x", {"--val-file", "--data-file"}},
      {"--cpu 2 --model cnn --hidden 5", {"--hidden", "--model cnn", "mlp"}},
      {"--cpu 2 --freeze layer9", {"--freeze layer9", "backbone"}},
      {"--cpu 2 --freeze '*'", {"--freeze", "no parameter to train"}},
      {"--cpu 2 --lr-scale layer9=2", {"--lr-scale layer9", "backbone"}},
      {"--cpu 2 --lr-scale 0", {"--lr-scale", "PATTERN=FACTOR"}},
      {"--cpu 2 --lr-scale 0=0", {"--lr-scale", "PATTERN=FACTOR"}},
      {"--cpu 2 --lr-scale 0=nan", {"--lr-scale", "PATTERN=FACTOR"}},
      {"--cpu 2 --weights-prefix x", {"--weights-prefix", "--init-weights"}},
      {"--cpu 2 --model resnet18 --layers 3", {"--layers", "--model resnet18", "gpt and gpt2"}},
      {"--cpu 2 --model gpt2 --data-file x --block-size 1025", {"--block-size 1025", "1024"}},
      {"--cpu 2 --model none.pt", {"--model none.pt: does not exist\n"}},
      {"--cpu 2 --nonsense", {"--nonsense"}},
      {"--cpu 2 --epochz 3 --lrr 2", {"not expected: --epochz 3 --lrr 2;"}},
      {"--cpu 2 surplus", {"surplus"}}};
  for (const auto& c : cases) {
    const auto result = run_train(c.arguments);
    CAPTURE(c.arguments, result.output);
    CHECK(result.exit_code == 2);
    CHECK(std::count(result.output.begin(), result.output.end(), '\n') == 1);
    for (const auto& word : c.words) CHECK_THAT(result.output, ContainsSubstring(word));
  }
}

TEST_CASE("weights that do not fit the model are an error that names the parameter") {
  TempDir dir;
  io::save_safetensors(dir / "w", {{"0.weight", at::zeros({3, 3})}});
  const auto result = run_train(kShortRun + "--init-weights " + (dir / "w"));
  CHECK(result.exit_code == 2);
  CHECK_THAT(result.output, ContainsSubstring("0.weight") && ContainsSubstring("[3, 3]"));
}

TEST_CASE("an interrupt stops at the next step, writes the weights and exits with 130") {
  TempDir dir;
  const EndlessTraining training(dir);
  training.signal(SIGINT);
  const test::ProgramResult result = training.wait();
  CHECK(result.exit_code == 130);
  CHECK_THAT(result.output,
             ContainsSubstring("interrupted after step") && ContainsSubstring("\nweights: " + (dir / "w") + "\n"));
  CHECK(io::load_safetensors(dir / "w").size() == 4);
  CHECK(read_log(dir / "log").back()["final"]["accuracy"].is_null());
}

TEST_CASE("an interrupt ends the program at once while many ranks still make their networks") {
  const TempDir dir;
  const auto result = test::run_program(std::string(TANDEM_TRAIN) +
                                        " --cpu 24 --threads-per-rank 1 --model resnet50 --limit-train-samples 100 >" +
                                        (dir / "out") + " 2>&1 & until grep -q ^training " + (dir / "out") +
                                        "; do kill -0 $! || exit 99; sleep 0.02; done; kill -TERM $!; wait $!");
  const std::string output = test::bytes_of(dir / "out");
  CAPTURE(output);
  CHECK(result.exit_code == 130);
  CHECK_THAT(output, ContainsSubstring("train: interrupted by SIGTERM\n") && !ContainsSubstring("next step"));
}

TEST_CASE("signals that come together are one request") {
  TempDir dir;
  const EndlessTraining training(dir);
  // Both are there when it goes on. (Two of one number would be one for the kernel.)
  for (int number : {SIGSTOP, SIGINT, SIGTERM, SIGCONT}) training.signal(number);
  const test::ProgramResult result = training.wait();
  CHECK(result.exit_code == 130);
  CHECK_THAT(result.output, ContainsSubstring("interrupted after step") && !ContainsSubstring("again"));
  CHECK(io::load_safetensors(dir / "w").size() == 4);
}
