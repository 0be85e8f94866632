// train on tables: safetensors files with the tensors inputs and targets.
#include <cmath>
#include <filesystem>
#include <limits>

#include <torch/nn/functional/activation.h>

#include "support/catch.h"
#include "support/temp_dir.h"
#include "support/train_program.h"
#include "tandem/core/error.h"
#include "tandem/io/safetensors.h"
#include "train/table_file.h"

using namespace tandem;
using tandem::test::check_refused;
using tandem::test::read_log;
using tandem::test::run_train;
using tandem::test::TempDir;

namespace {

using Figures = std::map<std::string, double>;

// As the log's last line has them, without times.
Figures figures_of(const std::string& arguments) {
  const TempDir dir;
  const auto result = run_train(arguments + " --no-progress --log-json " + (dir / "log"));
  CAPTURE(arguments, result.output);
  REQUIRE(result.exit_code == 0);
  Figures figures;
  const auto last = read_log(dir / "log").back().at("final");
  for (const std::string name :
       {"accuracy", "top5_accuracy", "loss", "mean_squared_error", "mean_absolute_error", "r2"})
    if (last.contains(name)) figures[name] = last[name].is_null() ? NAN : last[name].get<double>();
  return figures;
}

std::string save(const TempDir& dir, const std::string& name, const at::Tensor& inputs, const at::Tensor& targets) {
  io::save_safetensors(dir / name, {{"inputs", inputs}, {"targets", targets}});
  return dir / name;
}

at::Tensor random(at::IntArrayRef sizes, std::uint64_t seed) {
  return at::randn(sizes, at::make_generator<at::CPUGeneratorImpl>(seed));
}

// Sums of three numbers a sample, with weights of their own, and noise.
at::Tensor sums(const at::Tensor& inputs, double noise = 0.1) {
  const at::Tensor weights = at::tensor(std::vector<float>{1.F, -2.F, 0.5F, 3.F, 0.F, 1.F}).view({3, 2});
  return inputs.matmul(weights) + 3 + noise * random({inputs.size(0), 2}, 7);
}

// Three clouds of points.
at::Tensor cloud_labels(std::int64_t samples) { return at::arange(samples, at::kLong).remainder(3); }
at::Tensor clouds(const at::Tensor& labels, std::uint64_t seed) {
  const at::Tensor centres = at::tensor(std::vector<float>{2, 0, 0, 2, -2, -2}).view({3, 2});
  return centres.index_select(0, labels) + 0.4 * random({labels.size(0), 2}, seed);
}

// What an mlp of one hidden layer says.
at::Tensor scores_of(const std::string& weights, const at::Tensor& inputs) {
  std::map<std::string, at::Tensor> of;
  for (const auto& [name, tensor] : io::load_safetensors(weights)) of[name] = tensor.to(at::kDouble);
  const at::Tensor hidden = (inputs.to(at::kDouble).matmul(of.at("0.weight").t()) + of.at("0.bias")).relu();
  return hidden.matmul(of.at("2.weight").t()) + of.at("2.bias");
}

}  // namespace

TEST_CASE("a table with floating-point targets is learned, and judged as written down plainly") {
  const TempDir dir;
  const at::Tensor inputs = random({400, 3}, 1), judged = random({90, 3}, 2), wanted = sums(judged);
  const std::string table = save(dir, "t", inputs, sums(inputs)), val = save(dir, "v", judged, wanted);
  const Figures figures = figures_of("--cpu 2 --hidden 32 --batch-size 20 --epochs 40 --lr 0.02 --data-file " + table +
                                     " --val-file " + val + " --save-weights " + (dir / "w"));
  const at::Tensor error = scores_of(dir / "w", judged) - wanted.to(at::kDouble);
  const at::Tensor from_mean = wanted.to(at::kDouble) - wanted.to(at::kDouble).mean(0);
  const at::Tensor r2 = (1 - error.square().sum(0) / from_mean.square().sum(0)).mean();
  CHECK(figures.at("mean_squared_error") == Approx(error.square().mean().item<double>()).epsilon(1e-4));
  CHECK(figures.at("mean_absolute_error") == Approx(error.abs().mean().item<double>()).epsilon(1e-4));
  CHECK(figures.at("r2") == Approx(r2.item<double>()).epsilon(1e-4));
  CHECK(figures.at("mean_squared_error") < 0.1);  // the noise has 0.01
  CHECK(figures.at("r2") > 0.95);
  CHECK(figures.size() == 3);
}

TEST_CASE("the first losses of regression are a plain network's") {
  const TempDir dir;
  const at::Tensor inputs = random({40, 3}, 1), targets = sums(inputs);
  const std::string flags = "--cpu 1 --hidden 8 --lr 0 --no-shuffle --batch-size 10 --max-steps 3 --data-file " +
                            save(dir, "t", inputs, targets) + " --val-file " + (dir / "t");
  REQUIRE(run_train(flags + " --quiet --save-weights " + (dir / "w")).exit_code == 0);
  const auto losses = test::losses_of(flags);
  REQUIRE(losses.size() == 3);
  for (std::int64_t i = 0; i < 3; ++i) {
    const at::Tensor error =
        scores_of(dir / "w", inputs.narrow(0, 10 * i, 10)) - targets.narrow(0, 10 * i, 10).to(at::kDouble);
    CHECK(losses[static_cast<std::size_t>(i)] == Approx(error.square().mean().item<double>()).epsilon(1e-5));
  }
}

TEST_CASE("a table with integer targets is learned as classes") {
  const TempDir dir;
  const at::Tensor labels = cloud_labels(300);
  const std::string table = save(dir, "t", clouds(labels, 1), labels.to(at::kInt));
  const std::string flags = "--cpu 2 --hidden 16 --batch-size 10 --epochs 5 --lr 0.01 --data-file " + table;
  const auto result = run_train(flags + " --project-dir " + (dir / "p") + " --log-with jsonl --label-smoothing 0.1");
  CAPTURE(result.output);
  CHECK(result.exit_code == 0);
  CHECK_THAT(result.output, ContainsSubstring("t: 270 samples of 2 numbers to train on, 30 to judge by; 3 classes") &&
                                ContainsSubstring("validation accuracy"));
  CHECK(figures_of(flags).at("accuracy") > 0.95);
  const TempDir bools;
  const at::Tensor positive = random({40, 2}, 3);
  CHECK(figures_of("--cpu 1 --hidden 16 --epochs 20 --batch-size 4 --lr 0.01 --data-file " +
                   save(bools, "b", positive, positive.select(1, 0).gt(0).unsqueeze(1)))
            .at("accuracy") > 0.7);
}

TEST_CASE("a table's validation, its figures and its split do not depend on the number of ranks") {
  const TempDir dir;
  const at::Tensor inputs = random({101, 3}, 1), labels = cloud_labels(101);
  const std::string numbers = save(dir, "n", inputs, sums(inputs)), one = save(dir, "o", inputs, inputs.select(1, 0)),
                    classes = save(dir, "c", clouds(labels, 1), labels);
  for (const std::string& table : {numbers, one, classes}) {
    const auto judged = [&](const std::string& flags) {
      return figures_of(flags + " --threads-per-rank 1 --hidden 8 --lr 0 --max-steps 1 --batch-size 5 --data-file " +
                        table);
    };
    const Figures alone = judged("--cpu 1 --val-split 0.3");
    CAPTURE(table);
    CHECK(judged("--cpu 3 --val-split 0.3") == alone);
    if (table != numbers) continue;
    CHECK(judged("--cpu 2 --val-split 0.3") == alone);
    CHECK(judged("--cpu 1 --val-split 0.2") != alone);
  }
}

TEST_CASE("networks for images are trained on tables of images, whatever numbers these are") {
  const TempDir dir;
  const at::Tensor labels = at::arange(24, at::kLong).remainder(2);
  const at::Tensor images = (labels.view({24, 1, 1, 1}) * 100 + at::arange(3 * 8 * 8).view({3, 8, 8})).to(at::kByte);
  const std::string table = save(dir, "i", images, labels), numbers = save(dir, "n", images, labels.to(at::kHalf));
  const std::string flags = "--cpu 2 --batch-size 2 --max-steps 4 --log-with jsonl --project-dir " + (dir / "p");
  CHECK(figures_of("--model cnn " + flags + " --data-file " + table).contains("accuracy"));
  CHECK(figures_of("--model cnn " + flags + " --data-file " + numbers).contains("r2"));
  CHECK(figures_of("--model mlp " + flags + " --data-file " + table).contains("accuracy"));
}

TEST_CASE("a training on a table goes on with it") {
  const TempDir dir;
  const at::Tensor inputs = random({60, 3}, 1);
  const std::string begin = "--cpu 1 --hidden 8 --batch-size 5 ", checkpoints = " --checkpoint-dir " + (dir / "c"),
                    all = begin + "--val-split 0.25 --data-file " + save(dir, "t", inputs, sums(inputs));
  const auto straight = test::losses_of(all + " --max-steps 12");
  REQUIRE(run_train(all + " --quiet --max-steps 4" + checkpoints).exit_code == 0);
  CHECK(test::losses_of(begin + "--max-steps 12 --resume auto" + checkpoints) ==
        std::vector<double>(straight.begin() + 4, straight.end()));
}

TEST_CASE("R2 of targets without variance, and of a single sample, is scikit-learn's") {
  const TempDir dir;
  const at::Tensor inputs = random({20, 2}, 1), same = at::full({20}, 3.F);
  const auto judged = [&](const std::string& val) {
    return figures_of("--cpu 1 --hidden 4 --max-steps 1 --data-file " + (dir / "t") + " --val-file " + val).at("r2");
  };
  save(dir, "t", inputs, inputs.select(1, 0));
  CHECK(judged(save(dir, "same", inputs, same)) == 0);
  CHECK(std::isnan(judged(save(dir, "one", inputs.narrow(0, 0, 1), same.narrow(0, 0, 1)))));
}

namespace {

// Refused with one sentence that names the flag, the file and these words.
at::Tensor with(at::Tensor tensor, std::int64_t row, double value) {
  tensor = tensor.clone();
  tensor[row].fill_(value);
  return tensor;
}

}  // namespace

TEST_CASE("every wrong shape, type, count and range of a table is one sentence that names file and tensor") {
  const at::Tensor x = random({6, 3}, 1), y = x.select(1, 0), labels = cloud_labels(6);
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinite = std::numeric_limits<double>::infinity();
  struct Case {
    io::NamedTensors tensors;
    std::vector<std::string> words;
  };
  const std::vector<Case> cases{
      {{{"targets", y}}, {"no tensor 'inputs'", "it has targets"}},
      {{{"inputs", x}, {"target", y}}, {"no tensor 'targets'", "it has inputs, target"}},
      {{}, {"no tensor 'inputs'", "it has none"}},
      {{{"inputs", x}, {"targets", y.narrow(0, 0, 5)}}, {"'inputs' has 6 samples", "'targets' has 5"}},
      {{{"inputs", x.narrow(0, 0, 0)}, {"targets", y.narrow(0, 0, 0)}}, {"no samples"}},
      {{{"inputs", x.narrow(0, 0, 0)}, {"targets", labels.narrow(0, 0, 0)}}, {"no samples"}},
      {{{"inputs", x.narrow(1, 0, 0)}, {"targets", y}}, {"'inputs' has sizes [6, 0]", "no numbers"}},
      {{{"inputs", x}, {"targets", x.narrow(1, 0, 0)}}, {"'targets' has sizes [6, 0]", "no target"}},
      {{{"inputs", y}, {"targets", y}}, {"'inputs' has sizes [6]", "[N, F]"}},
      {{{"inputs", at::zeros({})}, {"targets", y}}, {"'inputs' has sizes []", "[N, F]"}},
      {{{"inputs", x}, {"targets", at::zeros({})}}, {"'targets' has sizes []", "[N]"}},
      {{{"inputs", x}, {"targets", x.view({6, 3, 1})}}, {"'targets' has sizes [6, 3, 1]", "[N, K]"}},
      {{{"inputs", x}, {"targets", labels.view({6, 1, 1})}}, {"'targets' has sizes [6, 1, 1]"}},
      {{{"inputs", x}, {"targets", x.to(at::kLong)}}, {"'targets' are integers of sizes [6, 3]", "one label"}},
      {{{"inputs", x.to(at::kComplexFloat)}, {"targets", y}}, {"'inputs' has the type ComplexFloat", "float32"}},
      {{{"inputs", x.to(at::kFloat8_e4m3fn)}, {"targets", y}}, {"'inputs' has the type Float8"}},
      {{{"inputs", x}, {"targets", y.to(at::kComplexFloat)}}, {"'targets' has the type ComplexFloat"}},
      {{{"inputs", with(x, 4, nan)}, {"targets", y}}, {"'inputs'", "sample 4", "NaN"}},
      {{{"inputs", with(x, 5, infinite)}, {"targets", y}}, {"'inputs'", "sample 5", "infinite"}},
      {{{"inputs", with(x.to(at::kDouble), 1, 1e300)}, {"targets", y}}, {"'inputs'", "sample 1", "beyond float32"}},
      {{{"inputs", x}, {"targets", with(y, 0, nan)}}, {"'targets'", "sample 0", "NaN"}},
      {{{"inputs", x}, {"targets", with(y, 3, -infinite)}}, {"'targets'", "sample 3"}},
      {{{"inputs", x}, {"targets", with(labels, 2, -1)}}, {"'targets'", "label -1 at sample 2", "negative"}},
      {{{"inputs", x}, {"targets", with(labels, 2, 65536)}}, {"'targets'", "label 65536 at sample 2", "beyond"}},
      {{{"inputs", x}, {"targets", at::zeros({6}, at::kLong)}}, {"'targets' are all 0", "one class"}},
      {{{"inputs", x.narrow(0, 0, 1)}, {"targets", y.narrow(0, 0, 1)}}, {"one sample", "--val-file"}}};
  const TempDir dir;
  const std::string path = dir / "table";
  for (const Case& c : cases) {
    io::save_safetensors(path, c.tensors);
    train::Options options;
    options.data.file = path;
    CAPTURE(c.words);
    CHECK_THROWS_AS(train::read_tables(options), ConfigError);
    CHECK_THROWS_WITH(train::read_tables(options), ContainsSubstring("--data-file " + path + ": "));
    for (const auto& word : c.words) CHECK_THROWS_WITH(train::read_tables(options), ContainsSubstring(word));
  }
}

TEST_CASE("what does not fit the table or its network is one sentence that names the flag") {
  const TempDir dir;
  const at::Tensor x = random({6, 3}, 1), y = x.select(1, 0), labels = cloud_labels(6);
  const std::string numbers = save(dir, "numbers", x, y), classes = save(dir, "classes", x, labels),
                    wide = save(dir, "wide", random({6, 4}, 1), y), two = save(dir, "two", x, x.narrow(1, 0, 2)),
                    more = save(dir, "more", x, labels + 1), text = dir / "text",
                    one = save(dir, "one", x, y.narrow(0, 0, 5)),
                    oblong = save(dir, "oblong", random({6, 1, 8, 9}, 1), labels);
  std::ofstream(text) << std::string(1000, 'x');
  const std::vector<std::pair<std::string, std::vector<std::string>>> cases{
      {numbers + " --val-file " + classes, {"--val-file", classes, "'targets' are integers"}},
      {classes + " --val-file " + numbers, {"--val-file", numbers, "'targets' are floating-point"}},
      {numbers + " --val-file " + wide, {"--val-file", wide, "'inputs' has sizes [6, 4]", "[6, 3]"}},
      {numbers + " --val-file " + two, {"--val-file", two, "'targets' has 2 numbers a sample", "has 1"}},
      {classes + " --val-file " + more, {"--val-file", more, "label 3", "0 to 2"}},
      {classes + " --val-file " + one, {"--val-file", one, "6 samples", "5"}},
      {text, {"--data-file", text + ": is text;", "safetensors", "gpt"}},
      {dir / "none", {"--data-file", (dir / "none") + ": does not exist\n"}},
      {dir.path(), {"--data-file", dir.path()}},
      {numbers + " --label-smoothing 0.1", {"--label-smoothing", numbers}},
      {numbers + " --normalize none", {"--normalize", "table"}},
      {numbers + " --augment light", {"--augment", "table"}},
      {numbers + " --tokens uint16", {"--tokens", "--model mlp"}},
      {numbers + " --save-best accuracy --save-weights " + (dir / "w"),
       {"--save-best", "mean_squared_error, mean_absolute_error, r2"}},
      {numbers + " --model cnn", {"--model cnn", "[5, 3]", numbers, "--model mlp"}},
      {oblong + " --model resnet18", {"--model resnet18", "1, 8, 9]"}}};
  for (const auto& [flags, words] : cases) check_refused("--cpu 1 --data-file " + flags, words);
}
