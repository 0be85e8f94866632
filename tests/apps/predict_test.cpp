// tandem predict.
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>

#include <torch/csrc/jit/api/module.h>

#include "io/safetensors_header.h"
#include "support/catch.h"
#include "support/file_bytes.h"
#include "support/image_files.h"
#include "support/temp_dir.h"
#include "support/train_program.h"
#include "tandem/data/image_folder.h"
#include "tandem/data/transforms.h"
#include "tandem/io/model_files.h"
#include "tandem/io/pickle_file.h"
#include "tandem/io/safetensors.h"
#include "tandem/models/sequential_nets.h"

using namespace tandem::test;
namespace predicting {
namespace {

namespace data = tandem::data;
namespace fs = std::filesystem;
using Json = nlohmann::json;

const std::vector<std::string> kColors{"blue", "green", "red"};

// A picture that lies in a corner, mostly of one colour.
Raster colored(int color, int number, int height = 20, int width = 27) {
  return Raster::of(height, width, 3, [=](int y, int x, int c) {
    return (2 - c == color ? 110 + number % 8 * 7 : 30) + (y < 6 ? 5 * y : 0) + 2 * x;
  });
}

// `count` pictures a colour, in folders; the first of each says in EXIF that it lies on its side.
void write_colors(const std::string& folder, int count) {
  for (std::size_t color = 0; color < kColors.size(); ++color) {
    const std::string directory = folder + "/" + kColors[color];
    fs::create_directories(directory);
    for (int i = 0; i < count; ++i)
      write_jpeg(directory + "/" + std::to_string(i) + ".jpg", colored(static_cast<int>(color), i));
    std::string bytes = bytes_of(directory + "/0.jpg");
    const std::string tiff("II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0", 26);
    bytes.insert(2, std::string("\xff\xe1\0\x22", 4) + std::string("Exif\0\0", 6) + tiff);
    std::ofstream(directory + "/0.jpg", std::ios::binary) << bytes;
  }
}

struct Said {
  std::vector<Json> lines;
  std::string errors;
  int exit_code;
};

Said predict(const std::string& arguments) {
  const TempDir dir;
  const auto result =
      run_program("(" + std::string(TANDEM_TOOL) + " predict --json " + arguments + " 2>" + (dir / "errors") + ")");
  Said said{{}, bytes_of(dir / "errors"), result.exit_code};
  std::istringstream lines(result.output);
  for (std::string line; std::getline(lines, line);) said.lines.push_back(Json::parse(line));
  return said;
}

std::map<std::string, double> probabilities_in(const Json& line) {
  std::map<std::string, double> all;
  for (const Json& guess : line["top"]) all.emplace(guess["class"], guess["probability"]);
  return all;
}

// What the library says of one picture, for all classes.
void check_line(const Json& line, const at::Tensor& probabilities, const std::vector<std::string>& classes) {
  CAPTURE(line.dump());
  const auto said = probabilities_in(line);
  REQUIRE(said.size() == classes.size());
  for (std::size_t label = 0; label < classes.size(); ++label)
    CHECK(said.at(classes[label]) ==
          Approx(probabilities[static_cast<std::int64_t>(label)].item<double>()).margin(1e-6));
  for (std::size_t i = 1; i < line["top"].size(); ++i)
    CHECK(line["top"][i - 1]["probability"] >= line["top"][i]["probability"]);
}

at::Tensor probabilities_of(tandem::models::Net& net, const at::Tensor& image) {
  const at::NoGradGuard no_grad;
  net.eval();
  return net.forward(image.unsqueeze(0)).to(at::kDouble).softmax(1)[0];
}

void write(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

// A script that says of a picture how bright its channels are, in a file with a description beside it.
void write_script(const TempDir& dir, const std::string& forward) {
  torch::jit::Module script("Means");
  script.define("def forward(self, x):\n  return " + forward + "\n");
  script.save(dir / "means.pt");
  write(dir / "classes.json", Json{{"format", "tandem-classes-1"},
                                   {"model", "script"},
                                   {"classes", {"red", "green", "blue"}},
                                   {"channels", 3},
                                   {"image_size", 8},
                                   {"resize", 8},
                                   {"mean", Json::array()},
                                   {"std", Json::array()}}
                                  .dump());
}

}  // namespace

TEST_CASE("predict says of pictures what the network of a training does, as pictures are judged") {
  const TempDir dir;
  write_colors(dir / "colors", 4);
  const std::string weights = dir / "best.safetensors";
  const auto trained =
      run_train("--cpu 1 --model cnn --image-size 12 --augment standard --epochs 3 --batch-size 3 --quiet " +
                ("--data-dir " + (dir / "colors")) + " --save-weights " + weights);
  CAPTURE(trained.output);
  REQUIRE(trained.exit_code == 0);
  const auto net = tandem::models::cnn({.channels = 3, .size = 12, .classes = 3});
  tandem::io::load_model(*net, weights);
  data::ImageFolder folder(dir / "colors",
                           {.exif_orientation = true,
                            .shorter_side = 14,  // 12 * 256 / 224
                            .crop = data::ImageSize{12, 12},
                            .transform = data::transforms::Normalize({0.485, 0.456, 0.406}, {0.229, 0.224, 0.225})});

  const Said whole = predict("--weights " + weights + " " + (dir / "colors"));
  CHECK(whole.errors.empty());
  CHECK(whole.exit_code == 0);
  REQUIRE(whole.lines.size() == 12);
  for (std::size_t i = 0; i < 12; ++i) {
    CHECK(whole.lines[i]["file"] == folder.path(i));
    check_line(whole.lines[i], probabilities_of(*net, folder.get(i).data), kColors);
  }
  // The description is in the weights and beside them.
  const std::string picture = folder.path(5);
  for (const std::string& how :
       {"--weights " + weights, "--classes " + (dir / "classes.json") + " --weights " + weights}) {
    const Said one = predict(how + " --top 2 " + picture);
    REQUIRE(one.lines.size() == 1);
    CHECK(one.lines[0]["top"].size() == 2);
    CHECK(one.lines[0]["top"][0]["class"] == whole.lines[5]["top"][0]["class"]);
  }
  const auto table = run_program(std::string(TANDEM_TOOL) + " predict --weights " + weights + " " + picture);
  CHECK(table.exit_code == 0);
  for (const std::string& text : {picture, kColors[0], kColors[1], kColors[2], std::string(" %")})
    CHECK_THAT(table.output, ContainsSubstring(text));
}

TEST_CASE("predict takes networks for MNIST, weights that say nothing of classes, and pictures in colour") {
  const TempDir dir;
  const auto trained = run_train("--cpu 1 --hidden 8 --limit-train-samples 200 --epochs 1 --quiet --save-weights " +
                                 (dir / "w.safetensors"));
  CAPTURE(trained.output);
  REQUIRE(trained.exit_code == 0);
  fs::create_directories(dir / "digits/some");
  for (int i = 0; i < 3; ++i)
    write_png(
        dir / ("digits/some/" + std::to_string(i) + ".png"),
        Raster::of(28, 28, i == 2 ? 3 : 1, [=](int y, int x, int c) { return (y * (i + 3) + x * 5 + 9 * c) % 256; }),
        {.color_type = i == 2 ? PNG_COLOR_TYPE_RGB : PNG_COLOR_TYPE_GRAY});
  const auto net = tandem::models::mlp({8});
  tandem::io::load_model(*net, dir / "w.safetensors");
  data::ImageFolder folder(dir / "digits",
                           {.channels = 1, .transform = data::transforms::Normalize({0.1307}, {0.3081})});
  tandem::test::run_program("mv " + (dir / "w.safetensors") + " " + (dir / "moved.safetensors"));
  REQUIRE(run_program(std::string(TANDEM_TOOL) + " checkpoint convert " + (dir / "moved.safetensors") + " " +
                      (dir / "copy.safetensors"))
              .exit_code == 0);  // whose metadata may say nothing
  std::vector<std::string> digits;
  for (int i = 0; i < 10; ++i) digits.push_back(std::to_string(i));
  for (const std::string name : {"moved.safetensors", "copy.safetensors"}) {
    const Said said = predict("--top 99 --weights " + (dir / name) + " " + (dir / "digits"));
    CAPTURE(name, said.errors);
    REQUIRE(said.lines.size() == 3);
    for (std::size_t i = 0; i < 3; ++i) check_line(said.lines[i], probabilities_of(*net, folder.get(i).data), digits);
  }
  CHECK(predict("--weights " + (dir / "moved.safetensors") + " " + folder.path(0)).lines.at(0)["top"].size() == 5);
}

TEST_CASE("predict takes a whole TorchScript module, in files of many batches") {
  const TempDir dir;
  write_script(dir, "x.mean([2, 3]) * 9");
  write_colors(dir / "colors", 25);
  const Said said = predict("--weights " + (dir / "means.pt") + " " + (dir / "colors"));
  CAPTURE(said.errors);
  REQUIRE(said.lines.size() == 75);
  data::ImageFolder folder(dir / "colors",
                           {.exif_orientation = true, .shorter_side = 8, .crop = data::ImageSize{8, 8}});
  for (std::size_t i = 0; i < 75; ++i) {
    CHECK(said.lines[i]["file"] == folder.path(i));
    CHECK(said.lines[i]["top"][0]["class"] == kColors[i / 25]);
    check_line(said.lines[i], (folder.get(i).data.mean({1, 2}).to(at::kDouble) * 9).softmax(0),
               {"red", "green", "blue"});
  }
  fs::create_directory(dir / "elsewhere");
  fs::rename(dir / "classes.json", dir / "elsewhere/c.json");
  const std::string picture = dir / "colors/red/1.jpg";
  const Said elsewhere =
      predict("--weights " + (dir / "means.pt") + " --classes " + (dir / "elsewhere/c.json") + " " + picture);
  REQUIRE(elsewhere.lines.size() == 1);
  CHECK(elsewhere.lines[0]["file"] == picture);
  CHECK(elsewhere.lines[0]["top"][0]["class"] == "red");
  const Said without = predict("--weights " + (dir / "means.pt") + " " + picture);
  CHECK(without.exit_code == 2);
  CHECK_THAT(without.errors, ContainsSubstring((dir / "classes.json") + " does not exist"));
}

TEST_CASE("pictures that cannot be read are told by predict, and cost the others nothing") {
  const TempDir dir;
  write_script(dir, "x.mean([2, 3])");
  write_colors(dir / "colors", 2);
  fs::create_directory(dir / "empty");
  write(dir / "colors/green/bad.jpg", "no picture");
  const std::string bytes = bytes_of(dir / "colors/red/1.jpg");
  write(dir / "colors/red/cut.jpg", bytes.substr(0, bytes.size() / 2));
  const std::string all = (dir / "none.jpg") + " " + (dir / "empty") + " " + (dir / "colors") + " " +
                          (dir / "colors/green/bad.jpg") + " " + (dir / "colors/red/0.jpg");
  const Said said = predict("--weights " + (dir / "means.pt") + " " + all);
  CHECK(said.exit_code == 1);
  REQUIRE(said.lines.size() == 7);
  CHECK(said.lines.back() == said.lines[4]);
  for (const char* text :
       {"tandem: ", "none.jpg: cannot be opened", "empty: has no pictures", "green/bad.jpg: ", "red/cut.jpg: "})
    CHECK_THAT(said.errors, ContainsSubstring(text));
  CHECK(std::count(said.errors.begin(), said.errors.end(), '\n') == 5);
  write_script(dir, "x.mean([2, 3]) / 0 * 0");
  const Said no_numbers = predict("--weights " + (dir / "means.pt") + " " + (dir / "colors/red/0.jpg"));
  CHECK(no_numbers.exit_code == 1);
  CHECK(no_numbers.lines.empty());
  CHECK_THAT(no_numbers.errors, ContainsSubstring("red/0.jpg: the network gives no numbers"));
}

TEST_CASE("every field of classes.json that is missing or wrong, and weights of other sizes, are told by name") {
  const TempDir dir;
  write_colors(dir / "colors", 1);
  tandem::io::save_model(*tandem::models::mlp({4}, {.channels = 3, .size = 8, .classes = 3}), dir / "model");
  const Json good{{"format", "tandem-classes-1"},
                  {"model", "mlp"},
                  {"hidden", {4}},
                  {"classes", kColors},
                  {"channels", 3},
                  {"image_size", 8},
                  {"resize", 9},
                  {"mean", {0.5, 0.5, 0.5}},
                  {"std", {0.2, 0.2, 0.2}}};
  const auto ask = [&](const Json& description) {
    write(dir / "model/classes.json", description.dump());
    return predict("--weights " + (dir / "model") + " " + (dir / "colors/red/0.jpg"));
  };
  CHECK(ask(good).exit_code == 0);
  const auto check_refused = [&](const Json& description, const std::string& text) {
    const Said said = ask(description);
    CAPTURE(description.dump());
    CHECK(said.exit_code == 2);
    CHECK_THAT(said.errors, ContainsSubstring("classes.json: ") && ContainsSubstring(text));
  };
  const std::map<std::string, Json> wrong{{"format", "2"},  {"model", "resnet99"}, {"hidden", {0}},
                                          {"classes", {1}}, {"channels", 2},       {"image_size", 0},
                                          {"resize", 7},    {"mean", {0.5}},       {"std", {0.2, 0.2, 0}}};
  for (const auto& [field, value] : good.items()) {
    Json without = good, changed = good;
    without.erase(field);
    changed[field] = wrong.at(field);
    if (field == "image_size") {
      check_refused(without, "is of a network that is not for pictures");
    } else {
      check_refused(without, '"' + field + '"');
    }
    if (field == "model") {
      CHECK_THAT(ask(changed).errors, ContainsSubstring("'resnet99' is no network for pictures"));
    } else {
      check_refused(changed, '"' + field + '"');
    }
  }
  check_refused(Json::array(), "is no JSON object");
  Json four = good;
  four["classes"].push_back("black");
  const Said sizes = ask(four);
  CHECK(sizes.exit_code == 1);
  CHECK_THAT(sizes.errors, ContainsSubstring("[3, 4]") && ContainsSubstring("[4, 4]"));
  write_script(dir, "x.mean([1, 2, 3])");
  const Said scores = predict("--weights " + (dir / "means.pt") + " " + (dir / "colors/red/0.jpg"));
  CHECK(scores.exit_code == 2);
  CHECK_THAT(scores.errors, ContainsSubstring("3 classes need [1, 3]"));
  for (const std::string arguments : {"", "--weights", "--top 0 --weights x", "--top x --weights x"})
    CHECK(run_program(std::string(TANDEM_TOOL) + " predict a.jpg " + arguments).exit_code == 2);
  CHECK(run_program(std::string(TANDEM_TOOL) + " predict --weights " + (dir / "model")).exit_code == 2);
}

TEST_CASE(
    "predict takes checkpoints, and the weights within a dict of Python's, and refuses what is not for pictures") {
  const TempDir dir;
  write_colors(dir / "colors", 3);
  const auto trained =
      run_train("--cpu 1 --hidden 4 --image-size 8 --epochs 1 --batch-size 3 --quiet --data-dir " + (dir / "colors") +
                " --checkpoint-dir " + (dir / "c") + " --save-weights " + (dir / "w.safetensors"));
  CAPTURE(trained.output);
  REQUIRE(trained.exit_code == 0);
  const std::string picture = " " + (dir / "colors/red/1.jpg");
  const auto wanted = predict("--weights " + (dir / "w.safetensors") + picture).lines.at(0);
  fs::remove(dir / "classes.json");
  CHECK(predict("--weights " + (dir / "c/latest") + picture).lines.at(0) == wanted);
  const auto check_refused = [&](const std::string& arguments, const std::string& text) {
    const Said said = predict("--weights " + arguments + picture);
    CAPTURE(arguments, said.errors, said.exit_code, said.lines);
    CHECK(said.exit_code == 2);
    CHECK(std::count(said.errors.begin(), said.errors.end(), '\n') == 1);
    CHECK_THAT(said.errors, ContainsSubstring(text));
  };
  check_refused(dir / "c", "is a folder of checkpoints; name one of them, such as " + (dir / "c/checkpoint_0"));

  c10::impl::GenericDict network(c10::AnyType::get(), c10::AnyType::get()), other = network.copy(),
                                                                            saved = network.copy();
  for (const auto& [name, tensor] : tandem::io::load_safetensors(dir / "w.safetensors")) network.insert(name, tensor);
  other.insert("0.weight", at::ones({2, 2}));
  for (const auto& [name, value] : {std::pair("model", network), std::pair("optimizer", other)})
    saved.insert(name, value);
  saved.insert("epoch", 3);
  const auto save = [&](const std::string& path) {
    std::ofstream file(path, std::ios::binary);
    tandem::io::write_pickle(
        [&](const void* data, std::size_t bytes) {
          file.write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
        },
        path, saved);
  };
  write(dir / "names.json", tandem::io::read_safetensors_header(dir / "w.safetensors").metadata.at("classes"));
  const std::string names = " --classes " + (dir / "names.json");
  save(dir / "one.pth");
  CHECK(predict("--weights " + (dir / "one.pth") + names + picture).lines.at(0)["top"] == wanted["top"]);
  saved.insert("ema", network.copy());
  save(dir / "two.pth");
  check_refused((dir / "two.pth") + names, "prefixes ema., model.; choose with --weights-prefix");
  for (const char* prefix : {"ema.", "model"})
    CHECK(predict("--weights " + (dir / "two.pth") + names + " --weights-prefix " + prefix + picture)
              .lines.at(0)["top"] == wanted["top"]);

  const std::string text = write_text(dir, 500), quick = "--cpu 1 --quiet --max-steps 1 --batch-size 2 ";
  const std::string gpt = "--model gpt --layers 1 --width 4 --heads 1 --block-size 8 --data-file " + text;
  tandem::io::save_safetensors(dir / "classes",
                               {{"inputs", at::rand({9, 3})}, {"targets", at::arange(9).remainder(3)}});
  tandem::io::save_safetensors(dir / "numbers", {{"inputs", at::rand({9, 3})}, {"targets", at::rand({9})}});
  int number = 0;
  for (const std::string& task :
       {gpt, "--hidden 4 --data-file " + (dir / "classes"), "--hidden 4 --data-file " + (dir / "numbers")}) {
    const std::string weights = dir / ("none" + std::to_string(++number));
    REQUIRE(run_train(quick + task + " --save-weights " + weights + " --checkpoint-dir " + weights + "c").exit_code ==
            0);
    check_refused(weights, weights + ": is of a network that is not for pictures (");
    if (number == 1) check_refused(weights + "c/checkpoint_0", "c/checkpoint_0: is of a network that is not for");
    fs::remove(dir / "classes.json");
  }
}

}  // namespace predicting
