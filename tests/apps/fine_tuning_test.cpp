// --init-weights with weights of another network, --freeze, --lr-scale and --decay-norms.
#include "train/fine_tuning.h"

#include <ATen/Functions.h>

#include "support/error_of.h"
#include "support/train_program.h"
#include "tandem/core/error.h"
#include "tandem/io/safetensors.h"
#include "tandem/models/gpt2.h"
#include "tandem/models/resnet.h"
#include "tandem/models/sequential_nets.h"

using namespace tandem;
using namespace tandem::test;

namespace {

const std::string kBase = "--limit-train-samples 200 --no-progress --hidden 8 ";  // 4 updates an epoch
const std::string kMlp = kBase + "--cpu 1 --batch-size 50 --epochs 1 ";

std::map<std::string, at::Tensor> weights_in(const std::string& path) {
  const auto tensors = io::load_safetensors(path);
  return {tensors.begin(), tensors.end()};
}

// Names of the parameters that are trained after --freeze.
std::vector<std::string> trained(models::Net& net, const std::vector<std::string>& patterns) {
  train::freeze(net, {.weights_prefix = {}, .freeze = patterns, .lr_scale = {}});
  std::vector<std::string> names;
  for (const auto& item : net.named_parameters())
    if (item.value().requires_grad()) names.push_back(item.key());
  return names;
}

}  // namespace

TEST_CASE("a pattern means a module, a name, what a star matches, the backbone or the head") {
  using Names = std::vector<std::string>;
  const auto of_mlp = [](const std::vector<std::string>& patterns) { return trained(*models::mlp({8, 8}), patterns); };
  CHECK(of_mlp({"backbone"}) == Names{"4.weight", "4.bias"});
  CHECK(of_mlp({"head"}) == Names{"0.weight", "0.bias", "2.weight", "2.bias"});
  CHECK(of_mlp({"0", "2.bias"}) == Names{"2.weight", "4.weight", "4.bias"});
  CHECK(of_mlp({"*.bias"}) == Names{"0.weight", "2.weight", "4.weight"});
  CHECK(trained(*models::resnet18({.classes = 3}), {"conv1", "bn1", "layer?"}) == Names{"fc.weight", "fc.bias"});
  models::Gpt2 gpt2({.vocabulary = 9, .positions = 4, .layers = 1, .width = 4, .heads = 2});
  CHECK(trained(gpt2, {"backbone"}) == Names{"transformer.wte.weight"});
  CHECK_THAT(error_of<ConfigError>([&] {
               of_mlp({"0", "layer1"});
             }),
             ContainsSubstring("--freeze layer1") && ContainsSubstring("backbone, head, 0, 2, 4"));
  CHECK_THAT(error_of<ConfigError>([&] { of_mlp({"*"}); }), ContainsSubstring("no parameter to train"));
}

TEST_CASE("parameters are grouped by learning rate and decay, and each is in one group") {
  const auto net = models::resnet18({.classes = 3});
  const auto all = net->parameters().size();
  const auto groups_of = [&](const std::vector<std::string>& scales, bool decay_norms) {
    return train::group_parameters(
        *net, {.weights_prefix = {}, .freeze = {}, .lr_scale = scales, .decay_norms = decay_norms});
  };
  const auto plain = groups_of({}, false);
  REQUIRE(plain.size() == 2);
  CHECK((plain[0].decays && !plain[1].decays));
  CHECK(plain[0].parameters.size() == 21);  // 20 convolutions and a linear layer
  CHECK(plain[0].parameters.size() + plain[1].parameters.size() == all);
  const auto decaying = groups_of({}, true);
  REQUIRE(decaying.size() == 1);
  CHECK(decaying[0].parameters.size() == all);
  const auto scaled = groups_of({"backbone=0.1", "layer4=0.5"}, true);
  REQUIRE(scaled.size() == 3);
  CHECK(scaled[0].lr_scale == 1.0);  // the head's, whose rate is reported
  CHECK(scaled[0].parameters.size() == 2);
  CHECK(scaled[1].lr_scale == 0.1);
  CHECK(scaled[2].lr_scale == 0.5);
  CHECK_THAT(error_of<ConfigError>([&] { groups_of({"layer5=0.1"}, true); }),
             ContainsSubstring("--lr-scale layer5") && ContainsSubstring("layer4"));
}

TEST_CASE("frozen parameters stay what they were, on one rank and on two") {
  const TempDir dir;
  REQUIRE(test::run_train(kMlp + "--quiet --max-steps 1 --save-weights " + (dir / "w")).exit_code == 0);
  const std::string ranks = GENERATE("--cpu 1 --batch-size 50 ", "--cpu 2 --batch-size 25 ");
  const auto result = test::run_train(kBase + ranks + "--epochs 1 --freeze backbone --init-weights " + (dir / "w") +
                                      " --save-weights " + (dir / "out"));
  CAPTURE(ranks, result.output);
  REQUIRE(result.exit_code == 0);
  CHECK_THAT(result.output, ContainsSubstring("taken           4  0, 2"));
  auto before = weights_in(dir / "w"), after = weights_in(dir / "out");
  CHECK(at::equal(before["0.weight"], after["0.weight"]));
  CHECK(at::equal(before["0.bias"], after["0.bias"]));
  CHECK_FALSE(at::equal(before["2.weight"], after["2.weight"]));
}

TEST_CASE("a training with frozen parts, scaled rates and decay on norms goes on as it was begun") {
  const TempDir dir;
  const std::string base = kBase + "--cpu 1 --batch-size 50 ", flags = base + "--checkpoint-dir " + (dir / "c") + " ";
  const std::string tuned = "--freeze 0.bias --lr-scale head=10 --decay-norms ";
  REQUIRE(test::run_train(base + tuned + "--epochs 2 --save-weights " + (dir / "straight")).exit_code == 0);
  REQUIRE(test::run_train(flags + tuned + "--epochs 1").exit_code == 0);
  const auto resumed = test::run_train(flags + "--epochs 2 --resume auto --save-weights " + (dir / "resumed"));
  CAPTURE(resumed.output);
  REQUIRE(resumed.exit_code == 0);
  CHECK_THAT(resumed.output, !ContainsSubstring("from here on"));
  auto after = weights_in(dir / "resumed");
  REQUIRE(after.size() == 4);
  for (const auto& [name, tensor] : weights_in(dir / "straight")) CHECK(at::equal(tensor, after[name]));
  for (const char* other : {"--freeze 0", "--lr-scale head=9", "--decay-norms=false"}) {
    const auto refused = test::run_train(flags + "--epochs 3 --resume auto " + other);
    CAPTURE(other, refused.output);
    CHECK(refused.exit_code == 2);
    CHECK_THAT(refused.output, ContainsSubstring("cannot go on from a checkpoint that was made with"));
  }
}

TEST_CASE("weights of another network are taken where they fit, a head of other classes is made anew") {
  const TempDir dir;
  const auto start = [&](const io::NamedTensors& tensors, const std::string& flags = "") {
    io::save_safetensors(dir / "w", tensors);
    return test::run_train(kMlp + "--max-steps 1 --lr 0 " + flags + " --init-weights " + (dir / "w") +
                           " --save-weights " + (dir / "out"));
  };
  const io::NamedTensors backbone{{"0.weight", at::ones({8, 784})}, {"0.bias", at::ones({8})}};
  io::NamedTensors tensors = backbone;
  tensors.insert(tensors.end(), {{"2.bias", at::ones({20})}, {"2.weight", at::ones({20, 8})}});
  auto result = start(tensors);
  CAPTURE(result.output);
  REQUIRE(result.exit_code == 0);
  CHECK_THAT(result.output, ContainsSubstring("left            2  2.weight [20, 8], 2.bias [20]"));
  CHECK_THAT(result.output, ContainsSubstring("made anew       2  2.weight [10, 8], 2.bias [10]"));
  CHECK(at::equal(weights_in(dir / "out")["0.weight"], at::ones({8, 784})));
  // What is not there is made anew too, and said where it is the backbone's, also when nothing else is.
  result = start(backbone, "--quiet");
  CHECK(result.output == "");
  result = start({{"0.weight", at::ones({8, 784})}}, "--quiet");
  CHECK(result.exit_code == 0);
  CHECK_THAT(result.output,
             ContainsSubstring("warning: --init-weights has not all of the backbone; made anew: 0.bias"));
  result = start({{"net.0.bias", at::ones({8})}, {"other.x", at::ones({3})}}, "--weights-prefix net");
  CHECK(result.exit_code == 0);
  CHECK_THAT(result.output, ContainsSubstring("left            1  other.x"));
}

TEST_CASE("weights that fit nothing are an error of one line that names them") {
  const TempDir dir;
  struct Case {
    io::NamedTensors tensors;
    std::string flags;
    std::vector<std::string> words;
  };
  const std::vector<Case> cases{
      {{{"0.weight", at::ones({8, 700})}}, "", {"'0.weight' has sizes [8, 700]", "[8, 784]"}},
      {{{"0.bias", at::ones({8})}, {"1.bias", at::ones({8})}}, "", {"no parameter '1.bias'", "--weights-prefix"}},
      {{{"net.0.bias", at::ones({8})}}, "", {"no parameter 'net.0.bias'"}},
      {{{"net.0.bias", at::ones({8})}}, "--weights-prefix nett", {"prefix 'nett.'"}},
      {{{"2.bias", at::ones({3})}}, "", {"has nothing of the model"}},
      {{}, "", {"has nothing of the model"}}};
  for (const auto& c : cases) {
    io::save_safetensors(dir / "w", c.tensors);
    const auto result = test::run_train(kMlp + c.flags + " --init-weights " + (dir / "w"));
    CAPTURE(c.flags, result.output);
    CHECK(result.exit_code == 2);
    CHECK(std::count(result.output.begin(), result.output.end(), '\n') == 1);
    for (const auto& word : c.words) CHECK_THAT(result.output, ContainsSubstring(word));
  }
}
