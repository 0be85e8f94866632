// Models' weights as directories, in the layout of Hugging Face and Accelerate.
#include "tandem/io/model_files.h"

#include <filesystem>
#include <fstream>
#include <limits>

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>
#include <nlohmann/json.hpp>

#include "support/catch.h"
#include "support/error_of.h"
#include "support/ranks.h"
#include "support/temp_dir.h"
#include "tandem/core/error.h"
#include "tandem/io/pickle_file.h"

using namespace tandem;
using namespace tandem::test;
namespace fs = std::filesystem;
namespace F = torch::nn::functional;

namespace {

torch::nn::Sequential make_net() {
  return torch::nn::Sequential(torch::nn::Linear(6, 8), torch::nn::BatchNorm1d(8), torch::nn::Linear(8, 3));
}

bool same_tensors(const torch::nn::Module& a, const torch::nn::Module& b) {
  const auto parts = [](const torch::nn::Module& module) {
    auto tensors = module.parameters();
    for (const auto& buffer : module.buffers()) tensors.push_back(buffer);
    return tensors;
  };
  const auto left = parts(a), right = parts(b);
  return std::equal(left.begin(), left.end(), right.begin(), right.end(),
                    [](const at::Tensor& x, const at::Tensor& y) { return at::equal(x, y); });
}

std::vector<std::string> files_in(const std::string& directory) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

nlohmann::json json_of(const std::string& path) {
  std::ifstream file(path);
  return nlohmann::json::parse(file);
}

}  // namespace

TEST_CASE("a model's weights come back, from one file or from several") {
  struct Case {
    std::uint64_t most;
    std::vector<std::string> files;
  };
  // 0.weight 192 bytes, 0.bias 32, 1.weight 32, 1.bias 32, 2.weight 96, 2.bias 12, buffers 32, 32 and 8
  const Case c = GENERATE(values<Case>(
      {{10'000, {"manifest.json", "model.safetensors"}},
       {224,
        {"manifest.json", "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
         "model-00003-of-00003.safetensors", "model.safetensors.index.json"}},
       {100,
        {"manifest.json", "model-00001-of-00004.safetensors", "model-00002-of-00004.safetensors",
         "model-00003-of-00004.safetensors", "model-00004-of-00004.safetensors", "model.safetensors.index.json"}}}));
  CAPTURE(c.most);
  const TempDir directory;
  auto net = make_net(), other = make_net();
  net->forward(at::randn({4, 6}));  // moves the buffers
  io::save_model(*net, directory / "model", {.max_shard_bytes = c.most});
  CHECK(files_in(directory / "model") == c.files);
  REQUIRE_FALSE(same_tensors(*net, *other));
  io::load_model(*other, directory / "model");
  CHECK(same_tensors(*net, *other));
  if (c.files.size() > 2) {
    const auto index = json_of(directory / "model/model.safetensors.index.json");
    CHECK(index["metadata"]["total_size"] == 192 + 32 * 3 + 96 + 12 + 32 + 32 + 8);
    CHECK(index["weight_map"].size() == 9);
    CHECK(index["weight_map"]["0.weight"] == c.files[1]);
  }
  // As Python leaves it, without a manifest.
  fs::remove(directory / "model/manifest.json");
  auto third = make_net();
  io::load_model(*third, directory / "model");
  CHECK(same_tensors(*net, *third));
}

TEST_CASE("tied weights are stored once, and types are converted") {
  struct Tied : torch::nn::Module {
    Tied() : weight(register_parameter("first", at::randn({4, 4}))) { register_parameter("second", weight); }
    at::Tensor weight;
  };
  const TempDir directory;
  Tied tied, other;
  io::save_model(tied, directory / "model");
  const auto stored = io::load_safetensors(directory / "model/model.safetensors");
  REQUIRE(stored.size() == 1);
  CHECK(stored[0].first == "first");
  {
    const torch::NoGradGuard no_grad;
    other.weight.set_data(other.weight.to(at::kBFloat16));
  }
  io::load_model(other, directory / "model");
  CHECK(at::equal(other.weight, tied.weight.to(at::kBFloat16)));
  // Python may have kept another of the names, or several.
  fs::create_directory(directory / "python");
  const auto ones = at::ones({4, 4});
  io::save_safetensors(directory / "python/model.safetensors", {{"second", ones}});
  io::load_model(tied, directory / "python");
  CHECK(at::equal(tied.weight, ones));
  io::save_safetensors(directory / "python/model.safetensors", {{"first", ones}, {"second", ones * 2}});
  CHECK_THAT(error_of<CheckpointError>([&] { io::load_model(tied, directory / "python"); }),
             ContainsSubstring("is not equal to 'first'"));
}

TEST_CASE("tied weights that are stored under both names are taken where they agree: NaN, signs of zero, types") {
  struct Tied : torch::nn::Module {
    explicit Tied(at::ScalarType type) : weight(register_parameter("first", at::zeros({6}, type))) {
      register_parameter("second", weight);
    }
    at::Tensor weight;
  };
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN(), kInfinity = std::numeric_limits<double>::infinity();
  const TempDir directory;
  fs::create_directory(directory / "python");
  // What is loaded into a model of `type`; undefined where that is an error.
  const auto load = [&](const at::Tensor& first, const at::Tensor& second, at::ScalarType type = at::kFloat) {
    Tied tied(type);
    io::save_safetensors(directory / "python/model.safetensors", {{"first", first}, {"second", second}});
    const auto error = error_of<CheckpointError>([&] { io::load_model(tied, directory / "python"); });
    if (error.empty()) return tied.weight.detach();
    CHECK_THAT(error, ContainsSubstring("'first'") && ContainsSubstring("'second'"));
    return at::Tensor();
  };
  const auto same = [](const at::Tensor& a, const at::Tensor& b) {
    return a.defined() && at::allclose(a.to(at::kDouble), b.to(at::kDouble), 0, 0, /*equal_nan=*/true);
  };
  const at::Tensor numbers = at::tensor({0.1, kNan, -kInfinity, 0.0, 7.0, 1e-30}, at::kDouble);
  const at::Tensor other = at::tensor({0.1, kNan, -kInfinity, 0.0, 7.5, 1e-30}, at::kDouble);
  const at::Tensor no_nan = at::tensor({0.1, 2.0, -kInfinity, 0.0, 7.0, 1e-30}, at::kDouble);
  const at::Tensor minus = at::tensor({0.1, kNan, -kInfinity, -0.0, 7.0, 1e-30}, at::kDouble);
  const std::vector<at::ScalarType> types{at::kDouble, at::kFloat, at::kBFloat16, at::kHalf};
  for (const auto wide : types)
    for (const auto narrow : types) {
      if (at::promote_types(wide, narrow) != wide) continue;
      for (const auto of_model : types) {
        CAPTURE(wide, narrow, of_model);
        const at::Tensor exact = numbers.to(wide), cast = exact.to(narrow);
        CHECK(same(load(exact, cast, of_model), exact.to(of_model)));
        CHECK(same(load(cast, exact, of_model), exact.to(of_model)));
        CHECK_FALSE(load(exact, other.to(narrow), of_model).defined());
        CHECK_FALSE(load(no_nan.to(narrow), exact, of_model).defined());
      }
    }
  CHECK_FALSE(load(numbers.to(at::kHalf), numbers.to(at::kBFloat16)).defined());  // neither is a cast of the other
  CHECK(same(load(numbers.to(at::kFloat), minus.to(at::kFloat)), numbers.to(at::kFloat)));
  CHECK(same(load(at::arange(6, at::kLong), at::arange(6, at::kFloat)), at::arange(6)));
}

TEST_CASE("files that the manifest does not list are not read") {
  const TempDir directory;
  auto net = make_net(), old = make_net();
  io::save_model(*net, directory / "model");
  io::save_model(*old, directory / "old", {.max_shard_bytes = 224});
  for (const auto& entry : fs::directory_iterator(directory / "old"))
    if (entry.path().filename() != "manifest.json") fs::copy(entry.path(), directory / "model");
  auto loaded = make_net();
  io::load_model(*loaded, directory / "model");
  CHECK(same_tensors(*loaded, *net));
}

TEST_CASE("weights that are not the model's are errors that name them, and change nothing") {
  const TempDir directory;
  const std::string path = directory / "model";
  auto net = make_net();
  const auto before = at::clone(net->parameters()[0].detach());
  const auto said = [&](const io::NamedTensors& tensors) {
    fs::remove_all(path);
    fs::create_directory(path);
    io::save_safetensors(path + "/model.safetensors", tensors);
    return error_of<CheckpointError>([&] { io::load_model(*net, path); });
  };
  io::NamedTensors good;
  for (const auto& item : net->named_parameters()) good.emplace_back(item.key(), at::zeros_like(item.value()));
  for (const auto& item : net->named_buffers()) good.emplace_back(item.key(), at::zeros_like(item.value()));
  auto bad = good;
  bad.pop_back();
  CHECK_THAT(said(bad), ContainsSubstring("has no tensor '1.num_batches_tracked', which the model needs"));
  bad = good;
  bad.emplace_back("3.weight", at::zeros({2}));
  CHECK_THAT(said(bad), ContainsSubstring("model.safetensors: tensor '3.weight' is none of the model's"));
  bad = good;
  bad[0].second = at::zeros({2, 3});
  CHECK_THAT(said(bad), ContainsSubstring("tensor '0.weight' has sizes [2, 3], the model needs [8, 6]"));
  CHECK(at::equal(net->parameters()[0].detach(), before));
  CHECK(said(good) == "");
  CHECK(at::equal(net->parameters()[0].detach(), at::zeros({8, 6})));
  CHECK_THAT(error_of<CheckpointError>([&] { io::load_model(*net, directory / "none"); }),
             ContainsSubstring("does not exist"));
  fs::remove(path + "/model.safetensors");
  CHECK_THAT(error_of<CheckpointError>([&] { io::load_model(*net, path); }),
             ContainsSubstring("model.safetensors: does not exist"));
  CHECK_THROWS_AS(io::save_model(*net, path, {.max_shard_bytes = 0}), ConfigError);
}

TEST_CASE("types are converted where numbers stay numbers, others are errors that name both, and change nothing") {
  const TempDir dir;
  struct Two : torch::nn::Module {
    Two() {
      first = register_parameter("first", at::zeros({2}));
      second = register_parameter("second", at::zeros({2}));
    }
    at::Tensor first, second;
  };
  fs::create_directory(dir / "model");
  Two model;
  for (const auto type : {at::kFloat8_e5m2, at::kFloat8_e8m0fnu, at::kUInt16, at::kBool, at::kBFloat16}) {
    io::save_safetensors(dir / "model/model.safetensors",
                         {{"first", at::ones({2}).to(type)}, {"second", at::ones({2}).to(type)}});
    model.second.detach().zero_();
    io::load_model(model, dir / "model");
    CHECK(at::equal(model.second.detach(), at::ones({2})));
  }
  for (const auto type : {at::kFloat4_e2m1fn_x2, at::kComplexFloat}) {
    io::save_safetensors(dir / "model/model.safetensors",
                         {{"first", at::zeros({2})}, {"second", at::zeros({2}, at::TensorOptions(type))}});
    CHECK_THAT(error_of<CheckpointError>([&] { io::load_model(model, dir / "model"); }),
               ContainsSubstring("model.safetensors: tensor 'second' has type " + std::string(c10::toString(type)) +
                                 ", which is not converted to Float"));
    CHECK(at::equal(model.first.detach(), at::ones({2})));
  }
}

namespace {

using Names = std::vector<std::string>;

// Writes a file of torch.save's, in which a checkpoint of a training lies around the weights.
void save_nested(const std::string& path, const io::NamedTensors& tensors) {
  c10::impl::GenericDict weights(c10::AnyType::get(), c10::AnyType::get());
  c10::impl::GenericDict all(c10::AnyType::get(), c10::AnyType::get());
  for (const auto& [name, tensor] : tensors) weights.insert(name, tensor);
  all.insert("epoch", 3);
  all.insert("model", weights);
  std::ofstream file(path, std::ios::binary);
  io::write_pickle(
      [&](const void* data, std::size_t bytes) {
        file.write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
      },
      path, all);
}

}  // namespace

TEST_CASE("of another model's weights what fits is taken, and the report has every name on both sides") {
  const TempDir directory;
  auto net = make_net();
  const auto before = at::clone(net->parameters()[4].detach());
  io::save_safetensors(directory / "w", {{"0.bias", at::ones({8})},
                                         {"1.bias", at::ones({8}, at::kHalf)},
                                         {"2.bias", at::ones({5})},
                                         {"2.weight", at::ones({5, 8})},
                                         {"more.weight", at::ones({2})},
                                         {"old.0.weight", at::ones({8, 6})},
                                         {"mask", at::ones({2, 2})}});
  const auto rename = [](const std::string& stored) {
    return stored == "mask" ? std::string() : stored.starts_with("old.") ? stored.substr(4) : stored;
  };
  const auto report = io::load_model(*net, directory / "w", {.strict = false, .rename = rename});
  CHECK(report.taken == Names{"0.weight", "0.bias", "1.bias"});
  CHECK(report.missing == Names{"1.weight", "1.running_mean", "1.running_var", "1.num_batches_tracked"});
  CHECK(report.unknown == Names{"more.weight"});
  CHECK(report.left == Names{"mask"});
  REQUIRE(report.other_sizes.size() == 2);
  CHECK(report.other_sizes[0].name == "2.weight");
  CHECK(report.other_sizes[0].sizes == std::vector<std::int64_t>{3, 8});
  CHECK(report.other_sizes[0].stored_sizes == std::vector<std::int64_t>{5, 8});
  CHECK(at::equal(net->parameters()[0].detach(), at::ones({8, 6})));
  CHECK(at::equal(net->parameters()[4].detach(), before));
}

TEST_CASE("one file of weights is loaded as a directory is, safetensors or torch.save's, also through a link") {
  const TempDir directory;
  auto net = make_net(), other = make_net();
  io::save_model(*net, directory / "model");
  io::load_model(*other, directory / "model/model.safetensors");
  CHECK(same_tensors(*net, *other));
  save_nested(directory / "w.pth", io::load_safetensors(directory / "model/model.safetensors"));
  fs::create_symlink(directory / "w.pth", directory / "link");
  for (const char* file : {"w.pth", "link"}) {
    auto third = make_net();
    CHECK_THAT(error_of<CheckpointError>([&] { io::load_model(*third, directory / file); }),
               ContainsSubstring(std::string(file) + ": tensor 'model.0.bias' is none of the model's"));
    io::load_model(*third, directory / file, {.rename = [](const std::string& name) { return name.substr(6); }});
    CHECK(same_tensors(*net, *third));
  }
  std::ofstream(directory / "text") << "text";
  CHECK_THAT(error_of<CheckpointError>([&] { io::load_model(*net, directory / "text"); }), ContainsSubstring("text"));
  save_nested(directory / "empty", {});
  CHECK_THAT(error_of<CheckpointError>([&] { io::load_model(*net, directory / "empty"); }),
             ContainsSubstring("has no dict of tensors by name"));
}

TEST_CASE("tensors that get one name must agree") {
  const TempDir directory;
  torch::nn::Linear net(torch::nn::LinearOptions(2, 2).bias(false));
  const auto load = [&](const at::Tensor& second) {
    io::save_safetensors(directory / "w", {{"a", at::ones({2, 2})}, {"b", second}});
    return error_of<CheckpointError>(
        [&] { io::load_model(*net, directory / "w", {.rename = [](const std::string&) { return "weight"; }}); });
  };
  CHECK(load(at::ones({2, 2})) == "");
  CHECK(at::equal(net->weight.detach(), at::ones({2, 2})));
  CHECK_THAT(load(at::zeros({2, 2})), ContainsSubstring("tensor 'b'") && ContainsSubstring("not equal to 'a'"));
}

TEST_CASE("damaged weights, and an index that leads elsewhere, are errors") {
  const TempDir directory;
  const std::string path = directory / "model", index = path + "/model.safetensors.index.json";
  auto net = make_net();
  io::save_model(*net, path, {.max_shard_bytes = 224});
  {
    std::fstream file(path + "/model-00002-of-00003.safetensors", std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-1, std::ios::end);
    file.put('\x7f');
  }
  CHECK_THAT(error_of<CheckpointError>([&] { io::load_model(*net, path); }),
             ContainsSubstring("model-00002-of-00003.safetensors: is damaged"));
  fs::remove(path + "/manifest.json");
  const auto good = json_of(index);
  const auto said = [&](const std::function<void(nlohmann::json&)>& change) {
    auto other = good;
    change(other);
    std::ofstream(index) << other;
    return error_of<CheckpointError>([&] { io::load_model(*net, path); });
  };
  CHECK(said([](auto&) {}) == "");
  CHECK_THAT(said([](auto& i) { i["weight_map"]["0.weight"] = "../other.safetensors"; }),
             ContainsSubstring("no file's name for '0.weight'"));
  CHECK_THAT(said([](auto& i) { i["weight_map"]["0.weight"] = 3; }), ContainsSubstring("no file's name"));
  CHECK_THAT(said([](auto& i) { i["weight_map"]["0.weight"] = "model-00003-of-00003.safetensors"; }),
             ContainsSubstring("tensor '0.weight' is not in model-00003-of-00003.safetensors"));
  CHECK_THAT(said([](auto& i) { i.erase("weight_map"); }), ContainsSubstring("has no weight_map"));
  std::ofstream(index) << "{";
  CHECK_THAT(error_of<CheckpointError>([&] { io::load_model(*net, path); }), ContainsSubstring("has no weight_map"));
}

TEST_CASE("ranks save and load a prepared model together, and train on") {
  const TempDir directory;
  const int before = GENERATE(1, 2), after = GENERATE(1, 3);
  const auto inputs = at::randn({8, 6}), targets = at::randint(0, 3, {8}, at::kLong);
  const auto run = [&](int ranks, bool loads) {
    return on_ranks<std::vector<double>>(ranks, [&](Accelerator& a) {
      auto net = make_net();
      torch::optim::SGD inner(net->parameters(), torch::optim::SGDOptions(0.1));
      auto [model, optimizer] = a.prepare(net, inner);
      std::vector<double> losses;
      const auto train = [&](int steps) {
        for (int step = 0; step < steps; ++step) {
          const auto window = a.accumulate(model);
          const auto loss = F::cross_entropy(model(inputs), targets);
          a.backward(loss);
          optimizer.step();
          optimizer.zero_grad();
          losses.push_back(loss.item<double>());
        }
      };
      train(4);
      if (loads)
        a.load_model(model, directory / "model");
      else
        a.save_model(model, directory / "model");
      losses.clear();
      train(4);
      return losses;
    });
  };
  const auto saved = run(before, false), loaded = run(after, true);
  for (const auto& losses : loaded)
    for (std::size_t i = 0; i < losses.size(); ++i) CHECK(losses[i] == Approx(saved[0][i]).epsilon(1e-5));
}

TEST_CASE("a failed save or load is the same error on all ranks, and training can go on") {
  const TempDir directory;
  std::ofstream(directory / "file") << "text";
  const auto errors = on_ranks<std::string>(2, [&](Accelerator& a) {
    auto net = make_net();
    auto model = a.prepare(net);
    std::string all;
    try {
      a.save_model(model, directory / "file");
    } catch (const CheckpointError& error) {
      all += error.what();
    }
    try {
      a.load_model(model, directory / "none");
    } catch (const CheckpointError& error) {
      all += error.what();
    }
    try {
      a.save_model(model, directory / "model", {.max_shard_bytes = 0});
    } catch (const ConfigError& error) {
      all += error.what();
    }
    a.backward(model(at::ones({2, 6})).sum());
    return all;
  });
  CHECK(errors[0] == errors[1]);
  CHECK_THAT(errors[0], ContainsSubstring("no directory") && ContainsSubstring("does not exist") &&
                            ContainsSubstring("max_shard_bytes is 0"));
}
