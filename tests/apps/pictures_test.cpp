// train on pictures in folders.
#include <CLI/CLI.hpp>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

#include "support/catch.h"
#include "support/file_bytes.h"
#include "support/image_files.h"
#include "support/temp_dir.h"
#include "support/train_program.h"
#include "tandem/data/mnist.h"
#include "tandem/io/checkpoint_series.h"
#include "tandem/io/safetensors.h"
#include "train/inputs.h"
#include "train/options.h"

using namespace tandem;
using tandem::test::Raster;
using tandem::test::read_log;
using tandem::test::TempDir;
namespace fs = std::filesystem;

namespace {

// A bright shape at some place of a dark, noisy picture: 0 a disc, 1 a square, 2 a triangle.
Raster draw(int shape, int seed, int size = 32) {
  at::manual_seed(static_cast<std::uint64_t>(seed * 3 + shape));
  const auto between = [](int least, int most) {
    return least + static_cast<int>(at::rand({1}).item<float>() * static_cast<float>(most - least + 1));
  };
  const int side = between(size / 3, size / 2), top = between(0, size - side), left = between(0, size - side);
  const int brightness = between(150, 250);
  const at::Tensor noise = at::randint(0, 60, {size, size, 3}, at::kByte);
  const auto inside = [&](int y, int x) {
    const int v = y - top, u = x - left, middle = side / 2;
    if (v < 0 || u < 0 || v >= side || u >= side) return false;
    if (shape == 0) return (v - middle) * (v - middle) + (u - middle) * (u - middle) <= middle * middle;
    return shape == 1 || std::abs(u - middle) <= v / 2;
  };
  return Raster::of(size, size, 3, [&](int y, int x, int c) {
    return inside(y, x) ? brightness - 20 * c : noise.const_data_ptr<std::uint8_t>()[(y * size + x) * 3 + c];
  });
}

const std::vector<std::string> kShapes{"disc", "square", "triangle"};

// `count` pictures a shape, as JPEGs from `first` on.
void write_shapes(const std::string& folder, int first, int count) {
  for (int shape = 0; shape < 3; ++shape) {
    const std::string directory = folder + "/" + kShapes[static_cast<std::size_t>(shape)];
    fs::create_directories(directory);
    for (int i = first; i < first + count; ++i)
      test::write_jpeg(directory + "/" + std::to_string(i) + ".jpg", draw(shape, i));
  }
}

std::string mnist_directory() { return std::string(std::getenv("TANDEM_SOURCE_DIR")) + "/data/mnist"; }

// The first samples of a part of MNIST, in folders.
void write_digits(const std::string& folder, data::MnistSplit split, std::size_t count, bool jpeg) {
  auto digits = data::mnist(mnist_directory(), {.split = split, .normalize = data::MnistNormalize::none});
  for (std::size_t i = 0; i < count; ++i) {
    const auto sample = digits.get_batch({i});
    const at::Tensor bytes = (sample.data * 255).round().to(at::kByte).contiguous();
    const auto* pixels = bytes.const_data_ptr<std::uint8_t>();
    const std::string directory = folder + "/" + std::to_string(sample.target.item<std::int64_t>());
    fs::create_directories(directory);
    char name[32];
    std::snprintf(name, sizeof name, "/%05zu", i);
    const auto raster = Raster::of(28, 28, 1, [&](int y, int x, int) { return pixels[y * 28 + x]; });
    if (jpeg)
      test::write_jpeg(directory + name + ".jpg", raster,
                       {.raster_colors = JCS_GRAYSCALE, .file_colors = JCS_GRAYSCALE});
    else
      test::write_png(directory + name + ".png", raster, {.color_type = PNG_COLOR_TYPE_GRAY});
  }
}

struct Ended {
  nlohmann::json final;
  std::string output;
};

Ended trained(const std::string& arguments) {
  const TempDir dir;
  const auto result = test::run_train(arguments + " --no-progress --log-json " + (dir / "log"));
  CAPTURE(arguments, result.output);
  REQUIRE(result.exit_code == 0);
  return {read_log(dir / "log").back().at("final"), result.output};
}

train::Options options_of(const std::string& arguments) {
  std::istringstream text("train --cpu 1 --quiet " + arguments);
  std::vector<std::string> words{std::istream_iterator<std::string>(text), {}};
  train::describe_command_line()->parse(std::vector<std::string>(words.rbegin(), words.rend() - 1));  // which throws
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  return train::parse_options(static_cast<int>(argv.size()), argv.data()).options.value();
}

// What is wrong with a command line, or with the data that it names.
std::string problem_with(const std::string& arguments) {
  try {
    train::Options options = options_of(arguments);
    train::read_inputs(options);
  } catch (const CLI::ParseError& error) {
    return error.what();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "nothing";
}

void check_problem(const std::string& arguments, const std::vector<std::string>& says) {
  const std::string problem = problem_with(arguments);
  CAPTURE(arguments);
  for (const std::string& text : says) CHECK_THAT(problem, ContainsSubstring(text));
}

}  // namespace

TEST_CASE("a ResNet-18 learns three shapes from folders of pictures", "[.long-shapes]") {
  const TempDir dir;
  write_shapes(dir / "train", 0, 200);
  write_shapes(dir / "val", 200, 60);
  const auto ended = trained(
      "--cpu 2 --model resnet18 --image-size 32 --batch-size 16 --epochs 5 --augment light "
      "--scheduler cosine --warmup-epochs 0.5 --data-dir " +
      dir.path());
  CAPTURE(ended.output);
  CHECK(ended.final["accuracy"] >= 0.95);
  CHECK_THAT(ended.output, ContainsSubstring("600 pictures of 3 classes to train on, 180 to judge by"));
}

TEST_CASE("MNIST in folders of PNGs is judged as MNIST is and learned as well, and JPEGs nearly so") {
  constexpr std::size_t kTrained = 4000;
  const TempDir dir;
  for (const bool jpeg : {false, true}) {
    const std::string folder = dir / (jpeg ? "jpeg" : "png");
    write_digits(folder + "/train", data::MnistSplit::train, kTrained, jpeg);
    write_digits(folder + "/val", data::MnistSplit::test, 10'000, jpeg);
  }
  const std::string small = "--cpu 2 --hidden 64 --epochs 2 --eval-every 0 --batch-size 32 ";
  const std::string pictures = "--channels 1 --image-size 28 --normalize mnist --data-dir ";
  const auto digits = trained(small + "--limit-train-samples 4000 --save-weights " + (dir / "w.safetensors"));
  const auto png = trained(small + pictures + (dir / "png")), jpeg = trained(small + pictures + (dir / "jpeg"));
  CHECK(png.final["accuracy"].get<double>() == Approx(digits.final["accuracy"].get<double>()).margin(0.02));
  CHECK(jpeg.final["accuracy"].get<double>() == Approx(digits.final["accuracy"].get<double>()).margin(0.03));

  const std::string as_it_is = "--cpu 2 --hidden 64 --max-steps 1 --lr 0 --init-weights " + (dir / "w.safetensors ");
  const auto judged = trained(as_it_is), in_png = trained(as_it_is + pictures + (dir / "png"));
  CHECK(judged.final["accuracy"] == digits.final["accuracy"]);
  CHECK(in_png.final["accuracy"] == digits.final["accuracy"]);
  CHECK(in_png.final["loss"].get<double>() == Approx(digits.final["loss"].get<double>()).epsilon(1e-5));
}

TEST_CASE("the flags of models reach the training") {
  const auto options = options_of(
      "--model gpt --layers 3 --width 30 --heads 5 --block-size 7 --dropout 0.25 "
      "--checkpoint-activations --data-file x");
  CHECK(options.checkpoint_activations);
  CHECK(options.gpt.layers == 3);
  CHECK(options.gpt.width == 30);
  CHECK(options.gpt.heads == 5);
  CHECK(options.gpt.block_size == 7);
  CHECK(options.gpt.dropout == 0.25);
  CHECK(options_of("--hidden 3,4").hidden == std::vector<std::int64_t>{3, 4});
  CHECK(options_of("--model resnet18").model == train::ModelKind::resnet18);
  CHECK(options_of("--model net.pt").script == "net.pt");
}

TEST_CASE(
    "a folder without validation is split by class, alike on any number of ranks, and each picture is used once") {
  const TempDir dir;
  write_shapes(dir / "shapes", 0, 20);
  for (int i = 3; i < 20; ++i) fs::remove(dir / ("shapes/disc/" + std::to_string(i) + ".jpg"));
  const std::string flags =
      " --hidden 8 --image-size 8 --lr 0 --max-steps 1 --batch-size 4 --data-dir " + (dir / "shapes");
  const auto one = trained("--cpu 1" + flags), four = trained("--cpu 4 --threads-per-rank 1" + flags);
  CHECK_THAT(one.output, ContainsSubstring("38 pictures of 3 classes to train on, 5 to judge by"));
  CHECK(one.final["loss"] == four.final["loss"]);
  const auto half = trained("--cpu 1 --val-split 0.5" + flags);
  CHECK_THAT(half.output, ContainsSubstring("21 pictures of 3 classes to train on, 22 to judge by"));
  const auto seeded = trained("--cpu 1 --seed 7" + flags);
  CHECK(seeded.final["loss"] != one.final["loss"]);
  const auto few = trained("--cpu 1 --limit-train-samples 7" + flags);
  CHECK_THAT(few.output, ContainsSubstring("7 pictures of 3 classes to train on, 5 to judge by"));
}

TEST_CASE("a folder with train/ only is split, and classes may be called train and val") {
  const TempDir dir;
  write_shapes(dir / "a/train", 0, 4);
  const std::string flags = "--cpu 1 --hidden 8 --image-size 8 --max-steps 1 --batch-size 4 --data-dir ";
  CHECK_THAT(trained(flags + (dir / "a")).output,
             ContainsSubstring("9 pictures of 3 classes to train on, 3 to judge by"));
  fs::create_directory(dir / "b");
  fs::rename(dir / "a/train/disc", dir / "b/train");
  fs::rename(dir / "a/train/square", dir / "b/val");
  CHECK_THAT(trained(flags + (dir / "b")).output,
             ContainsSubstring("6 pictures of 2 classes to train on, 2 to judge by"));
}

TEST_CASE("classes of the validation count by their names, of which some may be missing") {
  const TempDir dir;
  write_shapes(dir / "train", 0, 10);
  write_shapes(dir / "val", 0, 10);  // what was trained on, so that it is known by heart
  fs::remove_all(dir / "val/disc");
  const auto ended = trained(
      "--cpu 1 --hidden 128 --image-size 16 --epochs 40 --eval-every 0 --batch-size 10 --data-dir " + dir.path());
  CHECK(ended.final["accuracy"] > 0.9);  // 0 with labels that begin with the validation's first class
  fs::rename(dir / "val/square", dir / "val/quadrat");
  check_problem("--data-dir " + dir.path(), {"val/quadrat", "is a class that is not in"});
}

TEST_CASE(
    "weights say their classes and what becomes of pictures, and a checkpoint goes on with its own classes only") {
  const TempDir dir;
  write_shapes(dir / "shapes", 0, 6);
  const std::string flags = "--hidden 8,4 --image-size 8 --augment standard --batch-size 2 --data-dir " +
                            (dir / "shapes") + " --checkpoint-dir " + (dir / "c");
  trained("--cpu 1 " + flags + " --save-best accuracy --save-weights " + (dir / "w.safetensors"));
  const auto written = nlohmann::json::parse(std::ifstream(dir / "classes.json"));
  CHECK(written["model"] == "mlp");
  CHECK(written["hidden"] == std::vector<int>{8, 4});
  CHECK(written["classes"] == kShapes);
  CHECK(written["channels"] == 3);
  CHECK(written["image_size"] == 8);
  CHECK(written["resize"] == 9);
  CHECK(written["mean"].size() == 3);
  for (const char* weights : {"w.safetensors", "best.safetensors"}) {
    const auto bytes = test::bytes_of(dir / weights);
    std::uint64_t header = 0;
    std::memcpy(&header, bytes.data(), sizeof header);
    const auto json = nlohmann::json::parse(bytes.begin() + 8, bytes.begin() + 8 + static_cast<std::ptrdiff_t>(header));
    CHECK(nlohmann::json::parse(json["__metadata__"]["classes"].get<std::string>()) == written);
  }
  fs::rename(dir / "shapes/disc", dir / "shapes/ellipse");
  const auto renamed = test::run_train("--cpu 1 " + flags + " --resume auto --epochs 2");
  CHECK(renamed.exit_code == 2);
  CHECK_THAT(renamed.output, ContainsSubstring("gone are 'disc', new are 'ellipse'"));
}

TEST_CASE("a training goes on with the data that it began with only, wherever that lies now") {
  const TempDir dir;
  write_shapes(dir / "shapes", 0, 10);
  const std::string flags =
      "--cpu 1 --hidden 8 --image-size 8 --batch-size 3 --no-progress --checkpoint-dir " + (dir / "c") + " --data-dir ";
  trained(flags + (dir / "shapes") + " --epochs 1");
  const auto refused = [&](const std::string& data, const std::string& says) {
    const auto result = test::run_train(flags + data + " --epochs 2 --resume auto");
    CAPTURE(data, result.output);
    CHECK(result.exit_code == 2);
    CHECK_THAT(result.output, ContainsSubstring("the data is not that of the checkpoint"));
    CHECK_THAT(result.output, ContainsSubstring(says));
  };
  for (const char* copy : {"more", "fewer", "renamed", "same"})
    fs::copy(dir / "shapes", dir / copy, fs::copy_options::recursive);
  fs::copy(dir / "more/disc/0.jpg", dir / "more/disc/new.jpg");
  fs::remove(dir / "fewer/disc/0.jpg");
  fs::rename(dir / "renamed/disc/0.jpg", dir / "renamed/disc/a.jpg");
  refused(dir / "more", "now there are 28 pictures to train on and 3 to judge by");
  refused(dir / "fewer", "now there are 26 pictures");
  refused(dir / "renamed", "now there are 27 pictures");
  CHECK(test::run_train(flags + (dir / "same") + " --epochs 2 --resume auto").exit_code == 0);

  io::save_safetensors(dir / "table", {{"inputs", at::rand({20, 3})}, {"targets", at::rand({20})}});
  const std::string table = "--cpu 1 --hidden 8 --batch-size 2 --no-progress --data-file " + (dir / "table") +
                            " --checkpoint-dir " + (dir / "t");
  trained(table + " --epochs 1");
  io::save_safetensors(dir / "table", {{"inputs", at::rand({20, 3})}, {"targets", at::rand({20})}});
  const auto other = test::run_train(table + " --epochs 2 --resume auto");
  CHECK(other.exit_code == 2);
  CHECK_THAT(other.output, ContainsSubstring("the data is not that of the checkpoint"));
}

TEST_CASE("folders to train on and to judge by have the names that people give them, and an empty one is refused") {
  const TempDir dir;
  write_shapes(dir / "a/Train", 0, 4);
  write_shapes(dir / "a/Valid", 4, 2);
  write_shapes(dir / "b/train", 0, 4);
  write_shapes(dir / "b/test", 4, 2);
  const std::string flags = "--cpu 1 --hidden 8 --image-size 8 --max-steps 1 --batch-size 4 --data-dir ";
  for (const char* folder : {"a", "b"})
    CHECK_THAT(trained(flags + (dir / folder)).output,
               ContainsSubstring("12 pictures of 3 classes to train on, 6 to judge by") &&
                   ContainsSubstring("classes: disc (4), square (4), triangle (4)"));
  fs::create_directory(dir / "b/val");
  check_problem("--data-dir " + (dir / "b"), {"b/val", "no folders of classes"});
}

TEST_CASE("a training that diverges, and batches that are more than there is, are told of") {
  const TempDir dir;
  write_shapes(dir / "shapes", 0, 6);
  const std::string flags = "--cpu 1 --hidden 64,64 --image-size 8 --epochs 3 --data-dir " + (dir / "shapes");
  const auto diverged = trained(
      flags + " --optimizer sgd --momentum 0.9 --lr 1e6 --batch-size 4 --save-best loss --save-weights " + (dir / "w"));
  CHECK_THAT(diverged.output, ContainsSubstring("the training has diverged"));
  CHECK_THAT(diverged.output, ContainsSubstring("no best weights were kept"));
  CHECK_THAT(trained("--cpu 2" + flags.substr(7) + " --batch-size 64").output,
             ContainsSubstring("a step takes 128 samples, and the training set has 15"));
  for (const char* enough : {"15", "64"})  // one rank repeats nothing
    CHECK_THAT(trained(flags + " --batch-size " + enough).output, !ContainsSubstring("a step takes"));
}

TEST_CASE("a picture that cannot be read ends the training by its name, or is left out, told and counted") {
  const TempDir dir;
  write_shapes(dir / "shapes", 0, 6);
  for (const char* name : {"shapes/disc/bad.jpg", "shapes/square/empty.png"})
    std::ofstream(dir / name) << (name[7] == 'd' ? "no" : "");
  const std::string flags =
      "--cpu 2 --hidden 8 --image-size 8 --batch-size 2 --no-progress --data-dir " + (dir / "shapes");
  const auto ended = test::run_train(flags);
  CHECK(ended.exit_code == 1);
  CHECK((ended.output.find("bad.jpg") != std::string::npos || ended.output.find("empty.png") != std::string::npos));
  CHECK_THAT(ended.output, ContainsSubstring("--skip-bad-images leaves out"));
  const auto left_out = trained(flags + " --skip-bad-images");
  for (const char* text : {"bad.jpg", "empty.png", "pictures that were left out: 2"})
    CHECK_THAT(left_out.output, ContainsSubstring(text));
  CHECK(left_out.final["left_out"].size() == 2);
  fs::remove_all(dir / "shapes/disc");
  fs::create_directory(dir / "shapes/disc");
  std::ofstream(dir / "shapes/disc/bad.jpg") << "no";
  check_problem("--skip-bad-images --data-dir " + (dir / "shapes"), {"of the class 'disc' no picture can be read"});
}

TEST_CASE(
    "every augmentation, with classes balanced, trains alike with any number of workers and pictures are as said") {
  const TempDir dir;
  write_shapes(dir / "shapes", 0, 9);
  for (const char* augment : {"none", "light", "standard", "strong"}) {
    const std::string flags = std::string(
                                  "--cpu 2 --hidden 8 --image-size 12 --batch-size 3 --epochs 2 --balance-classes "
                                  "--no-progress --augment ") +
                              augment + " --data-dir " + (dir / "shapes") + " --workers ";
    const auto without = test::losses_of(flags + "0"), with_three = test::losses_of(flags + "3");
    CHECK(without == with_three);
    CHECK(without.size() == 8);
  }
}

TEST_CASE("data that cannot be trained on, and flags that do not go with it, are refused before training") {
  const TempDir dir;
  write_shapes(dir / "shapes", 0, 4);
  write_shapes(dir / "two/train", 0, 2);
  write_shapes(dir / "two/val", 0, 2);
  fs::create_directories(dir / "one/disc");
  fs::copy(dir / "shapes/disc", dir / "one/disc");
  fs::create_directories(dir / "none/a/b");
  fs::create_directories(dir / "empty");
  fs::create_directories(dir / "single/a");
  fs::create_directories(dir / "single/b");
  fs::copy(dir / "shapes/disc/0.jpg", dir / "single/a");
  fs::copy(dir / "shapes/disc/0.jpg", dir / "single/b");
  const std::string shapes = "--data-dir " + (dir / "shapes") + " ";
  check_problem("--data-dir " + (dir / "one"), {"one class only", "disc"});
  check_problem("--data-dir " + (dir / "none"), {"none/a", "has no pictures"});
  check_problem("--data-dir " + (dir / "empty"), {"neither folders of pictures", "MNIST"});
  check_problem("--data-dir " + (dir / "single"), {"no class has two pictures"});
  check_problem("--data-dir " + (dir / "two") + " --val-split 0.2", {"--val-split", "two/val"});
  for (const char* value : {"0", "1", "-0.1", "nan", "x", "2"})
    check_problem(shapes + "--val-split=" + value, {"--val-split", value});
  for (const char* value : {"0", "-1", "9999", "1.5", "x"})
    check_problem(shapes + "--image-size=" + value, {"--image-size", value});
  for (const char* value : {"0", "2", "4", "rgb"})
    check_problem(shapes + "--channels=" + value, {"--channels", value, "3"});
  for (const char* value : {"-1", "1e9", "x", "2.5"})
    check_problem(shapes + "--workers=" + value, {"--workers", value});
  for (const char* value : {"", "some", "NONE"}) check_problem(shapes + "--augment=" + value + "'", {"--augment"});
  for (const char* value : {"-1", "nan", "x"})
    check_problem(shapes + "--warmup-epochs=" + value, {"--warmup-epochs", value});
  check_problem(shapes + "--epochs 2 --warmup-epochs 2", {"--warmup-epochs", "nothing of the training's 2 updates"});
  check_problem(shapes + "--warmup-epochs 1 --warmup-steps 1", {"--warmup-steps", "--warmup-epochs"});
  check_problem(shapes + "--normalize mnist", {"--normalize mnist", "--channels 1"});
  check_problem(shapes + "--model vit_b_16 --image-size 40", {"vit_b_16", "40 x 40", "16"});
  check_problem(shapes + "--model cnn --image-size 5", {"cnn", "5 x 5"});
  check_problem(shapes + "--model gpt --data-file x", {"--data-dir", "--data-file"});
  for (const char* flag : {"--augment light", "--image-size 28", "--channels 1", "--val-split 0.5", "--skip-bad-images",
                           "--balance-classes", "--normalize imagenet"})
    check_problem(flag, {std::string(flag).substr(0, std::string(flag).find(' ')), "MNIST"});
}

TEST_CASE("a batch of one sample is refused before training where the network cannot be trained on it") {
  const TempDir dir;
  write_shapes(dir / "shapes", 0, 6);  // 15 to train on
  const std::string data = "--data-dir " + (dir / "shapes") + " --image-size 32 ", resnet = data + "--model resnet18 ";
  for (const auto& [flags, says] : std::vector<std::pair<std::string, std::string>>{
           {"--batch-size 1", "--batch-size 1: a rank's batch has one sample"},
           {"--global-batch-size 1", "--global-batch-size 1: a rank's batch has one sample"},
           {"--batch-size 7 --max-steps 3 --epochs 9", "--batch-size 7: the last batch of 15 samples has one sample"},
           {"--batch-size 2 --gradient-accumulation-steps 9 --max-steps 1", "--batch-size 2: the last batch"},
           {"--batch-size 4 --split-batches --exact --logical-ranks 4", "--batch-size 4 with --split-batches"}})
    check_problem(resnet + flags, {says, "resnet18 cannot be trained (Expected more than 1 value per channel",
                                   says.find("last") == std::string::npos ? "use a larger" : "or --drop-last"});
  for (const char* flags : {"--batch-size 7 --drop-last", "--batch-size 7 --max-steps 2", "--batch-size 8",
                            "--batch-size 1 --image-size 64"})  // where 2 x 2 pixels are left for the last norm
    CHECK(problem_with(
              (std::string(flags).ends_with("64") ? "--data-dir " + (dir / "shapes") + " --model resnet18 " : resnet) +
              flags) == "nothing");
  CHECK(problem_with(data + "--batch-size 1 --model cnn") == "nothing");
  const auto two = test::run_train("--cpu 2 --threads-per-rank 1 --no-even-batches --batch-size 7 " + resnet);
  CHECK(two.exit_code == 2);  // 14 and one more
  CHECK_THAT(two.output, ContainsSubstring("the last batch of 15 samples has one sample on a rank"));
}

namespace {

// What is said of the weights that a training begins with.
std::string table_of(const std::string& arguments) {
  train::Options options = options_of(arguments);
  return train::read_inputs(options).weights_table;
}

}  // namespace

TEST_CASE("a head of as many classes with other names, in another order, or of no classes, is made anew") {
  const TempDir dir;
  write_shapes(dir / "shapes", 0, 4);
  fs::copy(dir / "shapes", dir / "other", fs::copy_options::recursive);
  fs::rename(dir / "other/disc", dir / "other/ellipse");
  io::save_safetensors(dir / "numbers", {{"inputs", at::rand({12, 192})}, {"targets", at::rand({12, 3})}});
  const std::string pictures = "--hidden 8 --image-size 8 --max-steps 1 --batch-size 3 --data-dir ";
  const std::string shapes = pictures + (dir / "shapes"), other = pictures + (dir / "other"),
                    numbers = "--hidden 8 --max-steps 1 --batch-size 3 --data-file " + (dir / "numbers");
  for (const char* folder : {"named", "beside", "alone", "of_numbers"}) fs::create_directory(dir / folder);
  trained("--cpu 1 " + shapes + " --save-weights " + (dir / "named/net") + " --checkpoint-dir " + (dir / "c"));
  trained("--cpu 1 " + numbers + " --save-weights " + (dir / "of_numbers/net"));
  const auto tensors = io::load_safetensors(dir / "named/net");
  for (const char* nameless : {"beside/net", "alone/net"}) io::save_safetensors(dir / nameless, tensors);
  fs::copy(dir / "named/classes.json", dir / "beside");
  auto reordered = nlohmann::json::parse(std::ifstream(dir / "named/classes.json"));
  std::swap(reordered["classes"][0], reordered["classes"][1]);
  io::save_safetensors(dir / "reordered", tensors, {{"classes", reordered.dump()}});
  io::save_safetensors(dir / "damaged", tensors, {{"classes", "{"}});

  const auto check_taken = [&](const std::string& flags, const std::string& weights) {
    CAPTURE(flags, weights);
    CHECK_THAT(table_of(flags + " --init-weights " + (dir / weights)),
               ContainsSubstring("taken           4  0, 2") && !ContainsSubstring("as "));
  };
  const auto check_anew = [&](const std::string& flags, const std::string& weights, const std::string& why) {
    CAPTURE(flags, weights);
    CHECK_THAT(table_of(flags + " --init-weights " + (dir / weights)),
               ContainsSubstring("taken           2  0\n") &&
                   ContainsSubstring("made anew       2  2.weight, 2.bias") &&
                   ContainsSubstring("the head is made anew, as " + why));
  };
  for (const char* known : {"named/net", "beside/net", "c/checkpoint_0"}) {
    check_taken(shapes, known);
    check_anew(other, known, "its classes are others: gone are 'disc', new are 'ellipse'");
    check_anew(numbers, known, "the weights' is for classes, and the data has numbers to predict");
  }
  for (const char* unknown : {"alone/net", "damaged"}) check_taken(other, unknown);
  check_anew(shapes, "reordered", "its classes are others: they are in another order");
  check_anew(shapes, "of_numbers/net", "the weights' is not for classes");
  check_taken(numbers, "of_numbers/net");
  check_problem(shapes + " --init-weights " + (dir / "c"),
                {"--init-weights", "is a folder of checkpoints", "checkpoint_0"});
}

TEST_CASE("a training goes on with its own data where none is named, and says at its beginning what is left to do") {
  const TempDir dir;
  write_shapes(dir / "shapes", 0, 5);  // 12 to train on
  const std::string base = "--cpu 1 --no-progress --checkpoint-dir " + (dir / "c");
  const std::string flags = base + " --batch-size 3";
  const auto begun = test::run_train(flags + " --epochs 2 --hidden 8 --image-size 8 --data-dir " + (dir / "shapes"));
  CAPTURE(begun.output);
  REQUIRE(begun.exit_code == 0);
  const std::string from = "of " + (dir / "c/checkpoint_0");
  const auto goes_on = [&](const std::string& more, const std::string& says, int exit_code = 0) {
    const auto result = test::run_train(more);
    CAPTURE(more, result.output);
    CHECK(result.exit_code == exit_code);
    CHECK_THAT(result.output, ContainsSubstring(says));
    return result.output;
  };
  goes_on(flags + " --resume auto --epochs 1",
          "goes on from step 8 " + from +
              ": nothing is left to train, as it has 8 updates and --epochs 1 makes 4; use a larger --epochs");
  const std::string finished = goes_on(flags + " --resume auto --epochs 9 --max-steps 8",
                                       "as it has 8 updates and --max-steps 8; use a larger --max-steps to go on");
  CHECK_THAT(finished, ContainsSubstring("%  after 8 steps\n"));  // and no speed of nothing
  CHECK(io::list_checkpoints(dir / "c").size() == 1);

  const std::string other_batch = "a step of all ranks has 64 samples, those of the checkpoint have 3";
  goes_on(base + " --resume auto --epochs 3",
          "train: --batch-size 64: " + other_batch + "; use --batch-size 3 or --global-batch-size 3\n", 2);
  goes_on(
      "--cpu 2 " + flags.substr(8) + " --resume auto --epochs 3",
      "--batch-size 3: a step of all ranks has 6 samples, those of the checkpoint have 3; use --global-batch-size 3",
      2);
  goes_on(flags + " --resume auto --epochs 3 --data-file " + (dir / "x"), "--data-file cannot go on from a checkpoint",
          2);
  goes_on(flags + " --epochs 3 --resume " + (dir / "c"), "is a folder of checkpoints; name one of them, such as", 2);
  fs::rename(dir / "shapes", dir / "moved");
  goes_on(flags + " --resume auto --epochs 3",
          "the checkpoint was made with --data-dir " + (dir / "shapes") + ", which is not there", 2);
  goes_on(flags + " --resume auto --epochs 3 --data-dir " + (dir / "moved"), "goes on from step 8 " + from + "\n");
  fs::rename(dir / "moved", dir / "shapes");
  const std::string output = goes_on(flags + " --epochs 4 --resume " + (dir / "c/checkpoint_0"), "epoch 3, step 12");
  CHECK(output.find("goes on from step 8") < output.find("epoch 3, step 12"));
  CHECK_THAT(output, ContainsSubstring("12 pictures of 3 classes to train on"));
}

TEST_CASE("the best of an earlier training stay under another name, and its checkpoints are not removed") {
  const TempDir dir;
  write_shapes(dir / "shapes", 0, 4);
  const std::string flags =
      "--cpu 1 --no-progress --hidden 8 --image-size 8 --batch-size 3 --save-best loss --data-dir " + (dir / "shapes") +
      " --checkpoint-dir " + (dir / "c") + " ";
  const std::string best = dir / "c/best.safetensors", in_checkpoint = "/model.safetensors";
  const auto run = [&](const std::string& more) {
    const auto result = test::run_train(flags + more);
    CAPTURE(more, result.output);
    CHECK(result.exit_code == 0);
    return result.output;
  };
  CHECK_THAT(run("--epochs 1 --seed 1"), !ContainsSubstring("earlier"));
  const std::string first = test::bytes_of(best), first_checkpoint = test::bytes_of((dir / "c/best") + in_checkpoint);
  const std::string output = run("--epochs 1 --seed 2");
  CHECK_THAT(output,
             ContainsSubstring(best + " of an earlier training is kept as " + (dir / "c/best-1.safetensors")) &&
                 ContainsSubstring((dir / "c/best") + " of an earlier training is kept as " + (dir / "c/best-1")) &&
                 ContainsSubstring("has 1 checkpoint of an earlier training, up to " + (dir / "c/checkpoint_0")));
  const std::string second = test::bytes_of(best);
  CHECK(second != first);
  // Going on, the best are its own.
  CHECK_THAT(run("--epochs 3 --lr 0.01 --resume auto"), !ContainsSubstring("earlier"));
  CHECK(test::bytes_of(best) != second);
  CHECK_FALSE(fs::exists(dir / "c/best-2.safetensors"));
  run("--epochs 1 --seed 3 --quiet");
  CHECK(fs::exists(dir / "c/best-2.safetensors"));
  CHECK(fs::exists(dir / "c/best-2/manifest.json"));
  CHECK(test::bytes_of(dir / "c/best-1.safetensors") == first);
  CHECK(test::bytes_of((dir / "c/best-1") + in_checkpoint) == first_checkpoint);
  const auto refused = test::run_train(flags + "--epochs 1 --total-limit 1");
  CHECK(refused.exit_code == 2);
  CHECK_THAT(refused.output, ContainsSubstring("--total-limit 1: ") && ContainsSubstring("which would be removed"));
  run("--epochs 2 --total-limit 1 --resume auto");
}

TEST_CASE("train says where it has put weights, and which classes it has nothing to train on") {
  const TempDir dir;
  write_shapes(dir / "shapes", 0, 4);
  const std::string flags =
      "--cpu 1 --hidden 8 --image-size 8 --max-steps 1 --batch-size 3 --data-dir " + (dir / "shapes");
  const std::string output = trained(flags + " --ema 0.5 --save-best accuracy --save-weights " +
                                     (dir / "w.safetensors") + " --checkpoint-dir " + (dir / "c"))
                                 .output;
  for (const std::string& text : {std::string("  after 1 step in "), "\nweights: " + (dir / "w.safetensors") + "\n",
                                  "\naveraged weights: " + (dir / "w.ema.safetensors") + "\n",
                                  "\ncheckpoint: " + (dir / "c/checkpoint_0") + "\n"})
    CHECK_THAT(output, ContainsSubstring(text));
  CHECK_THAT(output, ContainsSubstring("best accuracy 0.00 % after step 1: ") ||
                         ContainsSubstring("best accuracy 33.33 % after step 1: ") ||
                         ContainsSubstring("best accuracy 66.67 % after step 1: ") ||
                         ContainsSubstring("best accuracy 100.00 % after step 1: "));
  const auto check_warns = [](const std::string& arguments, const std::string& text) {
    train::Options options = options_of(arguments);
    const auto inputs = train::read_inputs(options);
    CAPTURE(arguments);
    REQUIRE(inputs.warnings.size() == (text.empty() ? 0 : 1));
    if (!text.empty()) CHECK(inputs.warnings[0] == "no sample to train on in " + text);
  };
  const std::string data = "--data-dir " + (dir / "shapes") + " --image-size 8 ";
  check_warns(data, "");
  check_warns(data + "--limit-train-samples 2", "1 of 3 classes: 'triangle'; a larger --limit-train-samples has some");
  check_warns("--limit-train-samples 1",
              "9 of 10 classes: '0', '1', '2', '3', '4', '6', '7', '8', '9'; a larger --limit-train-samples has some");
  io::save_safetensors(dir / "t", {{"inputs", at::rand({30, 2})}, {"targets", at::tensor({0, 2, 5}).repeat({10})}});
  check_warns("--data-file " + (dir / "t"), "3 of 6 classes: '1', '3', '4'; labels count from 0 to the largest one");
}
