// build/apps/tandem estimate. That the peaks are those of trainings is measured by benchmarks/memory_estimates.
#include <nlohmann/json.hpp>

#include <ATen/Functions.h>

#include "support/train_program.h"
#include "tandem/io/safetensors.h"
#include "tandem/models/resnet.h"
#include "tandem/models/sequential_nets.h"

using namespace tandem;
using namespace tandem::test;
using Json = nlohmann::json;

namespace {

ProgramResult estimate(const std::string& arguments) {
  return run_program(std::string(TANDEM_TOOL) + " estimate " + arguments);
}

Json estimated(const std::string& arguments) {
  const auto result = estimate(arguments + " --json");
  CAPTURE(arguments, result.output);
  REQUIRE(result.exit_code == 0);
  return Json::parse(result.output);
}

double part(const Json& json, const std::string& name, const char* when = "later_mb") {
  for (const auto& each : json["parts"])
    if (each["name"] == name) return each[when];
  FAIL("no part " + name);
  return 0;
}

}  // namespace

TEST_CASE("the parameters of train's models are as many as train writes") {
  const std::string model = GENERATE("--model mlp", "--model mlp --hidden 7,33", "--model cnn",
                                     "--model gpt2 --width 24 --heads 3 --layers 2",
                                     "--model gpt --width 24 --heads 3 --layers 2 --block-size 16");
  const TempDir dir;
  const bool gpt = model.find("gpt") != std::string::npos;
  const auto result =
      run_train("--cpu 1 --quiet --max-steps 1 --batch-size 8 --limit-train-samples 8 " + model + " --save-weights " +
                (dir / "w") + (gpt ? " --sample-bytes 0 --data-file " + write_text(dir, 4000) : ""));
  CAPTURE(model, result.output);
  REQUIRE(result.exit_code == 0);
  std::int64_t written = 0;
  for (const auto& [name, tensor] : io::load_safetensors(dir / "w")) written += tensor.numel();
  CHECK(estimated(model + " --cpu 1")["parameters"] == written);
}

TEST_CASE("the parameters of torchvision's networks are as many as they have") {
  const auto parameters_of = [](const torch::nn::Module& net) {
    std::int64_t all = 0;
    for (const auto& parameter : net.parameters()) all += parameter.numel();
    return all;
  };
  const models::ResNetOptions digits{.classes = 10, .channels = 1};
  CHECK(estimated("--model resnet18")["parameters"] == parameters_of(*models::resnet18(digits)));
  CHECK(estimated("--model resnet34")["parameters"] == parameters_of(*models::resnet34(digits)));
  CHECK(estimated("--model resnet50")["parameters"] == parameters_of(*models::resnet50(digits)));
  // Of torchvision's, with 10 classes and one channel.
  CHECK(estimated("--model gpt2 --vocabulary 50257")["parameters"] == 124'439'808);
  CHECK(estimated("--model vit_b_16")["parameters"] == 86'567'656 - 990 * (768 + 1) - 2 * 768 * 16 * 16);
}

TEST_CASE("networks for pictures are as large as torchvision's, and need less when layers are computed again") {
  const std::string pictures = " --cpu 1 --image-size 224 --classes 1000";
  for (const auto& [model, parameters] : std::vector<std::pair<std::string, std::int64_t>>{
           {"resnet18", 11'689'512}, {"resnet34", 21'797'672}, {"resnet50", 25'557'032}, {"vit_b_16", 86'567'656}}) {
    const auto plain = estimated("--model " + model + pictures);
    CAPTURE(model);
    CHECK(plain["parameters"] == parameters);
    const auto again = estimated("--model " + model + pictures + " --checkpoint-activations");
    CHECK(part(again, "activations", "peak_mb") < 0.85 * part(plain, "activations", "peak_mb"));
  }
  for (const char* model : {"gpt", "gpt2"}) {
    const auto plain = estimated(std::string("--cpu 1 --model ") + model);
    const auto again = estimated(std::string("--cpu 1 --checkpoint-activations --model ") + model);
    CHECK(part(again, "activations", "peak_mb") < part(plain, "activations", "peak_mb"));
  }
  const std::string small = "--cpu 1 --image-size 16 --classes 3 --channels 1 --model ";
  const models::ImageShape shape{.channels = 1, .size = 16, .classes = 3};
  for (const auto& [model, net] : std::vector<std::pair<std::string, std::shared_ptr<models::Net>>>{
           {"mlp", models::mlp({512, 512}, shape)}, {"cnn", models::cnn(shape)}}) {
    std::int64_t parameters = 0;
    for (const auto& parameter : net->parameters()) parameters += parameter.numel();
    CHECK(estimated(small + model)["parameters"] == parameters);
  }
}

TEST_CASE("weights, gradients and optimizer state are counted by optimizer and sharding") {
  const double weights = 4e-6 * (784 * 1000 + 1000 + 1000 * 10 + 10);
  const auto of = [&](const std::string& flags) { return estimated("--hidden 1000 " + flags); };
  for (const auto& [optimizer, copies] :
       std::vector<std::pair<std::string, int>>{{"sgd", 0}, {"momentum", 1}, {"adam", 2}, {"adamw", 2}})
    CHECK(part(of("--cpu 1 --optimizer " + optimizer), "optimizer state") == Approx(copies * weights));
  CHECK(part(of("--cpu 1 --optimizer sgd --momentum 0.9"), "optimizer state") == Approx(weights));
  const auto shared = of("--cpu 4");
  CHECK(part(shared, "weights") == Approx(weights));
  CHECK(part(shared, "gradients") == Approx(weights));
  CHECK(part(shared, "optimizer state") == Approx(2 * weights));
  const auto divided = of("--cpu 4 --sharding optimizer");
  CHECK(part(divided, "weights") == Approx(4 * weights));
  CHECK(part(divided, "optimizer state") == Approx(2 * weights));
  CHECK(part(of("--cpu 4 --sharding none"), "optimizer state") == Approx(8 * weights));
  const auto gpu = of("--gpus 4");
  CHECK(gpu["of"] == "each GPU");
  CHECK(part(gpu, "optimizer state") == Approx(2 * weights));
  CHECK(part(of("--cpu 1 --batch-size 640"), "activations") == Approx(10 * part(of("--cpu 1"), "activations")));
}

TEST_CASE("a file's header is enough, and a directory with an index as well") {
  const TempDir dir;
  io::save_safetensors(dir / "w.safetensors", {{"a", at::zeros({1000, 500}, at::kHalf)}, {"b", at::zeros({2})}});
  CHECK(estimated(dir / "w.safetensors")["parameters"] == 500'002);
  std::filesystem::create_directory(dir / "model");
  io::save_safetensors(dir / "model/one.safetensors", {{"a", at::zeros({10, 5})}});
  io::save_safetensors(dir / "model/two.safetensors", {{"b", at::zeros({7})}});
  std::ofstream(dir / "model/model.safetensors.index.json")
      << R"({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})";
  CHECK(estimated(dir / "model")["parameters"] == 57);
  CHECK_THAT(estimate(dir / "model").output, ContainsSubstring("without activations"));
}

TEST_CASE("what cannot be estimated is one sentence") {
  const TempDir dir;
  const std::vector<std::tuple<std::string, int, std::string>> cases{
      {dir / "nothing", 1, "does not exist"},
      {dir.path(), 1, "model.safetensors"},
      {"--model rnn", 2, "rnn"},
      {"--model net.pt", 2, "TorchScript"},
      {"--model gpt --width 10 --heads 3", 2, "--heads 3"},
      {"--model cnn --layers 4", 2, "--layers does not go with --model cnn"},
      {"--batch-size 0", 2, "--batch-size"},
      {"x --model mlp", 2, "--model"}};
  for (const auto& [arguments, code, word] : cases) {
    const auto result = estimate(arguments);
    CAPTURE(arguments, result.output);
    CHECK(result.exit_code == code);
    CHECK_THAT(result.output, ContainsSubstring(word));
    CHECK(std::count(result.output.begin(), result.output.end(), '\n') == 1);
  }
}
