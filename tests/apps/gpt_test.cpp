// train --model gpt as its user sees it.
#include <cmath>
#include <fstream>
#include <map>
#include <numbers>

#include <torch/data/example.h>
#include <torch/optim/adamw.h>

#include "support/catch.h"
#include "support/temp_dir.h"
#include "support/train_program.h"
#include "tandem/data/text_dataset.h"
#include "tandem/io/safetensors.h"

using namespace tandem;
using tandem::test::check_refused;
using tandem::test::losses_of;
using tandem::test::read_log;
using tandem::test::run_train;
using tandem::test::TempDir;
using tandem::test::write_text;

TEST_CASE("gpt learns a text, and is judged by the loss on the text's end") {
  const TempDir dir;
  const auto result = run_train("--cpu 2 --model gpt --batch-size 8 --epochs 2 --data-file " +
                                write_text(dir, 128 * 200) + " --lr 0.003 --log-json " + (dir / "log"));
  CHECK(result.exit_code == 0);
  CHECK_THAT(result.output, ContainsSubstring("training gpt on 2 CPU ranks") && ContainsSubstring("validation loss") &&
                                ContainsSubstring("bits per byte"));
  const auto log = read_log(dir / "log", /*judged=*/true);
  // 199 samples, of which 19 are held out, give 12 updates an epoch; it is judged after the first, and at the end.
  REQUIRE(log.size() == 2 * 12 + 2);
  CHECK(log[12]["eval"]["validation_loss"].get<double>() > log.back()["final"]["validation_loss"].get<double>());
  const double uniform = std::log(256.0);
  CHECK(std::abs(log.front()["loss"].get<double>() - uniform) < 0.5);
  const double loss = log.back()["final"]["validation_loss"];
  CHECK(loss > 0.0);
  CHECK(loss < 0.6 * uniform);
  CHECK(log.back()["final"]["bits_per_byte"].get<double>() == Approx(loss / std::numbers::ln2));
}

namespace {

struct Sizes {
  std::int64_t block_size, layers, width, heads;

  std::string flags() const {
    return " --block-size " + std::to_string(block_size) + " --layers " + std::to_string(layers) + " --width " +
           std::to_string(width) + " --heads " + std::to_string(heads) + " ";
  }
};

// The gpt's loss, written down plainly.
at::Tensor plain_gpt_loss(const Sizes& sizes, const std::map<std::string, at::Tensor>& weights,
                          const torch::data::Example<>& batch) {
  const std::int64_t head_width = sizes.width / sizes.heads;
  const auto linear = [&](const std::string& name, const at::Tensor& x) {
    return at::matmul(x, weights.at(name + ".weight").t()) + weights.at(name + ".bias");
  };
  const auto norm = [&](const std::string& name, const at::Tensor& x) {
    const at::Tensor centred = x - x.mean(-1, true);
    return centred / (centred.square().mean(-1, true) + 1e-5).sqrt() * weights.at(name + ".weight") +
           weights.at(name + ".bias");
  };
  const at::Tensor future = at::ones({sizes.block_size, sizes.block_size}, at::kBool).triu(1);
  at::Tensor x = weights.at("wte.weight").index({batch.data}) + weights.at("wpe.weight");
  for (std::int64_t layer = 0; layer < sizes.layers; ++layer) {
    const std::string block = "blocks." + std::to_string(layer) + ".";
    const at::Tensor qkv = linear(block + "qkv", norm(block + "ln1", x));
    std::vector<at::Tensor> heads;
    for (std::int64_t head = 0; head < sizes.heads; ++head) {
      const auto part = [&](int which) { return qkv.narrow(2, sizes.width * which + head_width * head, head_width); };
      const at::Tensor scores =
          at::matmul(part(0), part(1).transpose(1, 2)) / std::sqrt(static_cast<double>(head_width));
      heads.push_back(at::matmul(scores.masked_fill(future, -INFINITY).softmax(-1), part(2)));
    }
    x = x + linear(block + "proj", at::cat(heads, 2));
    const at::Tensor wide = linear(block + "fc", norm(block + "ln2", x));
    x = x + linear(block + "out", 0.5 * wide * (1 + at::erf(wide / std::numbers::sqrt2)));
  }
  const at::Tensor scores = at::matmul(norm("lnf", x), weights.at("head.weight").t());
  return -scores.log_softmax(-1).gather(2, batch.target.unsqueeze(2)).mean();
}

}  // namespace

TEST_CASE("gpt's loss curve is a plain loop's, on 2 ranks and with two batches an update") {
  const TempDir dir;
  const std::string text = write_text(dir, 128 * 60);
  const auto [sizes, flags] = GENERATE_COPY(
      table<Sizes, std::string>({{{128, 4, 128, 4}, " "}, {{20, 2, 24, 3}, Sizes{20, 2, 24, 3}.flags()}}));
  const std::string gpt = "--model gpt --no-shuffle --batch-size 4 --max-steps 5 --data-file " + text + flags;
  REQUIRE(run_train(gpt + "--cpu 1 --lr 0 --save-weights " + (dir / "init")).exit_code == 0);

  std::map<std::string, at::Tensor> weights;
  std::vector<at::Tensor> parameters;
  for (const auto& [name, tensor] : io::load_safetensors(dir / "init")) {
    weights[name] = tensor.clone().requires_grad_();
    parameters.push_back(weights[name]);
  }
  torch::optim::AdamW adamw(parameters, torch::optim::AdamWOptions(1e-3).weight_decay(0.01));
  data::TextDataset samples(text, {.block_size = sizes.block_size});
  std::vector<double> expected;
  for (std::size_t at = 0; at < 5 * 8; at += 8) {
    const std::vector<std::size_t> indices{at, at + 1, at + 2, at + 3, at + 4, at + 5, at + 6, at + 7};
    const at::Tensor loss = plain_gpt_loss(sizes, weights, samples.get_batch(indices));
    expected.push_back(loss.item<double>());
    adamw.zero_grad();
    loss.backward();
    adamw.step();
  }
  for (const std::string ranks : {"--cpu 2", "--cpu 1 --gradient-accumulation-steps 2"}) {
    const auto losses = losses_of(gpt + ranks + " --decay-norms --init-weights " + (dir / "init"));
    REQUIRE(losses.size() == expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i) {
      CAPTURE(ranks, i, losses[i], expected[i]);
      CHECK(std::abs(losses[i] - expected[i]) <= 1e-5 * expected[i]);
    }
  }
}

TEST_CASE("gpt takes the flags of the other models, also where a rank has no batch") {
  const TempDir dir;
  const std::string text = write_text(dir, 128 * 40);
  for (const std::string flags :
       {"--no-even-batches", "--dispatch-batches", "--split-batches --batch-size 6 --drop-last",
        "--gradient-accumulation-steps 2 --clip-grad-norm 0.5", "--scheduler cosine --warmup-steps 1",
        "--scheduler plateau --no-even-batches", "--mixed-precision bf16 --optimizer sgd --momentum 0.9"}) {
    CAPTURE(flags);
    const std::string batch = flags.find("--batch-size") == std::string::npos ? " --batch-size 2 " : " ";
    const auto result =
        run_train("--cpu 3 --model gpt --limit-train-samples 8 --epochs 2 --data-file " + text + batch + flags);
    CHECK(result.exit_code == 0);
    CHECK_THAT(result.output, ContainsSubstring("bits per byte"));
  }
}

namespace {

const std::string kSmall = "--model gpt --block-size 32 --layers 2 --width 32 --heads 2 ";
const std::string kSampleFollows = "a sample of what it writes:\n";

// What a training printed as its sample; empty where it printed none.
std::string sample_of(const test::ProgramResult& result) {
  CAPTURE(result.output);
  REQUIRE(result.exit_code == 0);
  const auto at = result.output.find(kSampleFollows);
  return at == std::string::npos ? "" : result.output.substr(at + kSampleFollows.size());
}

// Weights with which a gpt of one layer, 256 wide, writes `bytes`, no two alike, after a newline: each byte's score
// towers where the one before it is the input, and what attention and mlp would add is 0.
io::NamedTensors weights_that_write(const std::string& bytes, std::int64_t block_size) {
  io::NamedTensors weights{{"wte.weight", at::eye(256)}, {"wpe.weight", at::zeros({block_size, 256})}};
  const std::map<std::string, std::vector<std::int64_t>> layer{
      {"qkv", {768, 256}}, {"proj", {256, 256}}, {"fc", {1024, 256}}, {"out", {256, 1024}}};
  for (const auto& [name, sizes] : layer) {
    weights.emplace_back("blocks.0." + name + ".weight", at::zeros(sizes));
    weights.emplace_back("blocks.0." + name + ".bias", at::zeros({sizes[0]}));
  }
  for (const std::string norm : {"blocks.0.ln1", "blocks.0.ln2", "lnf"}) {
    weights.emplace_back(norm + ".weight", at::ones({256}));
    weights.emplace_back(norm + ".bias", at::zeros({256}));
  }
  const at::Tensor head = at::zeros({256, 256});
  for (std::size_t i = 0; i < bytes.size(); ++i)
    head[static_cast<unsigned char>(bytes[i])][static_cast<unsigned char>(i == 0 ? '\n' : bytes[i - 1])] = 100;
  weights.emplace_back("head.weight", head);
  return weights;
}

}  // namespace

TEST_CASE("gpt writes a sample of the asked length at the end, the same each time") {
  const TempDir dir;
  const std::string gpt =
      kSmall + "--cpu 2 --batch-size 4 --lr 0.003 --max-steps 20 --data-file " + write_text(dir, 4000);
  const std::string sample = sample_of(run_train(gpt + " --log-json " + (dir / "log")));
  CHECK(sample.size() >= 200 + 1);  // longer where bytes are shown as escapes
  CHECK(sample == sample_of(run_train(gpt)));
  CHECK(read_log(dir / "log").back()["final"]["sample"].get<std::string>() + "\n" == sample);
  const std::string shorter = sample_of(run_train(gpt + " --sample-bytes 50"));
  REQUIRE(shorter.size() >= 50 + 1);
  CHECK(sample.starts_with(shorter.substr(0, shorter.size() - 1)));
  CHECK(sample_of(run_train(gpt + " --sample-bytes 0")).empty());
}

TEST_CASE("quiet keeps gpt's sample for the log") {
  const TempDir dir;
  const std::string gpt = kSmall + "--cpu 2 --max-steps 2 --quiet --data-file " + write_text(dir, 4000);
  CHECK(run_train(gpt).output.empty());
  CHECK(run_train(gpt + " --log-json " + (dir / "log")).output.empty());
  CHECK(!read_log(dir / "log").back()["final"]["sample"].get<std::string>().empty());
}

TEST_CASE("gpt's sample shows UTF-8 as it is, and control characters and other bytes as escapes") {
  // Characters of one to four bytes; then what is none: a byte of none, a cut-off one, an escape, a C1 control
  // character, a surrogate, an overlong form.
  const std::string shown = "ab\t\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80";
  const std::string escaped =
      "\xff\xc4"
      "c\x1b"
      "d\xc2\x9b\xed\xa1\x81"
      "e\xe0\x90\x8f"
      "f\n";
  const std::string escapes = R"(\xff\xc4c\x1bd\xc2\x9b\xed\xa1\x81e\xe0\x90\x8ff)"
                              "\n";
  const TempDir dir;
  io::save_safetensors(dir / "w", weights_that_write(shown + escaped, 4));
  const std::string length = std::to_string(shown.size() + escaped.size());
  const auto result = run_train(
      "--cpu 2 --model gpt --block-size 4 --layers 1 --width 256 --heads 1 --lr 0 --max-steps 1 "
      "--batch-size 2 --init-weights " +
      (dir / "w") + " --sample-bytes " + length + " --data-file " + write_text(dir, 100) + " --log-json " +
      (dir / "log"));
  CHECK(sample_of(result) == shown + escapes + "\n");
  CHECK(read_log(dir / "log").back()["final"]["sample"] == shown + escapes);
}

TEST_CASE("a gpt whose loss is NaN ends without a sample") {
  const TempDir dir;
  const auto result = run_train(kSmall + "--cpu 2 --optimizer sgd --lr 1e6 --batch-size 4 --max-steps 20 --data-file " +
                                write_text(dir, 4000));
  CHECK_THAT(result.output, ContainsSubstring("validation loss") && ContainsSubstring("nan"));
  CHECK(sample_of(result).empty());
}

TEST_CASE("gpt with dropout gives the same bits twice, other losses than without, and is judged without it") {
  const TempDir dir;
  const std::string gpt = kSmall + "--cpu 2 --batch-size 4 --data-file " + write_text(dir, 4000);
  for (const std::string name : {"a", "b"})
    REQUIRE(run_train(gpt + " --max-steps 10 --dropout 0.2 --quiet --save-weights " + (dir / name)).exit_code == 0);
  const auto a = io::load_safetensors(dir / "a"), b = io::load_safetensors(dir / "b");
  REQUIRE(a.size() == b.size());
  for (std::size_t i = 0; i < a.size(); ++i) CHECK(at::equal(a[i].second, b[i].second));

  const auto plain = losses_of(gpt + " --max-steps 10"), dropped = losses_of(gpt + " --max-steps 10 --dropout 0.2");
  CHECK(plain == losses_of(gpt + " --max-steps 10 --dropout 0"));
  for (std::size_t i = 0; i < plain.size(); ++i) CHECK(plain[i] != dropped[i]);

  const std::string judge =
      gpt + " --lr 0 --max-steps 1 --init-weights " + (dir / "a") + " --log-json " + (dir / "log");
  std::vector<nlohmann::json> finals;
  for (const std::string dropout : {"0", "0.9"}) {
    REQUIRE(run_train(judge + " --dropout " + dropout).exit_code == 0);
    finals.push_back(read_log(dir / "log").back()["final"]);
  }
  CHECK(finals[0]["validation_loss"] == finals[1]["validation_loss"]);
  CHECK(finals[0]["sample"] == finals[1]["sample"]);
}

TEST_CASE("gpt's ranks drop different activations") {
  // Both ranks' batches are the same sample: with the same masks the mean loss would be that of one rank alone.
  const TempDir dir;
  const std::string gpt =
      kSmall + "--limit-train-samples 1 --max-steps 1 --batch-size 1 --data-file " + write_text(dir, 4000);
  const auto loss = [&](const std::string& flags) { return losses_of(gpt + flags).at(0); };
  CHECK(loss(" --cpu 1") == Approx(loss(" --cpu 2")));
  CHECK(loss(" --cpu 1 --dropout 0.5") != Approx(loss(" --cpu 2 --dropout 0.5")));
}

TEST_CASE("gpt's losses on 1 and on 2 ranks are alike with the same global batch") {
  const TempDir dir;
  const std::string gpt =
      "--model gpt --block-size 48 --layers 3 --width 40 --heads 5 --global-batch-size 8 --drop-last --max-steps 12 "
      "--data-file " +
      write_text(dir, 48 * 60);
  const auto alone = losses_of(gpt + " --cpu 1"), together = losses_of(gpt + " --cpu 2");
  REQUIRE(alone.size() == 12);
  REQUIRE(together.size() == alone.size());
  for (std::size_t i = 0; i < alone.size(); ++i) CHECK(std::abs(together[i] - alone[i]) <= 1e-5 * alone[i]);
}

TEST_CASE("gpt refuses weights of other sizes, and says which") {
  const TempDir dir;
  const std::string gpt =
      "--model gpt --cpu 2 --max-steps 1 --batch-size 2 --sample-bytes 0 --data-file " + write_text(dir, 1000);
  const std::string sizes = " --block-size 16 --layers 2 --width 24 --heads 3";
  REQUIRE(run_train(gpt + sizes + " --save-weights " + (dir / "w")).exit_code == 0);
  CHECK(run_train(gpt + sizes + " --init-weights " + (dir / "w")).exit_code == 0);
  struct Case {
    std::string sizes;
    std::vector<std::string> words;
  };
  const std::vector<Case> cases{
      {" --block-size 8 --layers 2 --width 24 --heads 3", {"wpe.weight", "[16, 24]", "[8, 24]"}},
      {" --block-size 16 --layers 1 --width 24 --heads 3", {"no parameter 'blocks.1."}},
      {" --block-size 16 --layers 2 --width 12 --heads 3", {"wte.weight", "[256, 24]", "[256, 12]"}}};
  for (const auto& c : cases) {
    const auto result = run_train(gpt + c.sizes + " --init-weights " + (dir / "w"));
    CAPTURE(c.sizes, result.output);
    CHECK(result.exit_code == 2);
    CHECK_THAT(result.output, ContainsSubstring("--init-weights " + (dir / "w")));
    for (const auto& word : c.words) CHECK_THAT(result.output, ContainsSubstring(word));
  }
}

TEST_CASE("wrong arguments of gpt get one sentence that names flag and value, and exit code 2") {
  const TempDir dir;
  const std::string short_text = dir / "short", data = " --data-file " + write_text(dir, 1000);
  std::ofstream(short_text) << std::string(256, 'x');
  struct Case {
    std::string arguments;
    std::vector<std::string> words;
  };
  const std::vector<Case> cases{
      {"", {"--model gpt", "--data-file"}},
      {"--data-file /nowhere", {"--data-file", "/nowhere"}},
      {"--data-file " + dir.path(), {"--data-file", dir.path()}},
      {"--data-file " + short_text, {"--data-file", short_text, "256 bytes", "257", "--block-size"}},
      {"--block-size 500" + data, {"--data-file", "1000 bytes", "1001", "500"}},
      {"--text x", {"--text"}},
      {"--block-size 0" + data, {"--block-size", "0"}},
      {"--block-size x" + data, {"--block-size", "x"}},
      {"--layers 0" + data, {"--layers", "0"}},
      {"--layers -1" + data, {"--layers", "-1"}},
      {"--width 0" + data, {"--width", "0"}},
      {"--heads 0" + data, {"--heads", "0"}},
      {"--heads 5" + data, {"--width 128", "--heads 5"}},
      {"--width 64 --heads 128" + data, {"--width 64", "--heads 128"}},
      {"--dropout -0.1" + data, {"--dropout", "-0.1"}},
      {"--dropout 1" + data, {"--dropout", "1", "less than 1"}},
      {"--dropout 1.5" + data, {"--dropout", "1.5"}},
      {"--dropout nan" + data, {"--dropout", "nan"}},
      {"--sample-bytes -1" + data, {"--sample-bytes", "-1"}},
      {"--hidden 5" + data, {"--hidden", "--model gpt", "mlp"}},
      {"--data-dir .", {"--data-dir", "--model gpt", "mlp, cnn"}},
      {"--normalize none" + data, {"--normalize", "--model gpt", "mlp, cnn"}}};
  for (const auto& c : cases) {
    const auto result = run_train("--cpu 2 --model gpt " + c.arguments);
    CAPTURE(c.arguments, result.output);
    CHECK(result.exit_code == 2);
    CHECK(std::count(result.output.begin(), result.output.end(), '\n') == 1);
    for (const auto& word : c.words) CHECK_THAT(result.output, ContainsSubstring(word));
  }
}

TEST_CASE("other models refuse gpt's options") {
  for (const std::string flag : {"--tokens uint16", "--vocabulary 300", "--block-size 8", "--layers 1", "--width 8",
                                 "--heads 1", "--dropout 0", "--sample-bytes 0"}) {
    const auto result = run_train("--cpu 2 --model cnn " + flag);
    CAPTURE(flag, result.output);
    CHECK(result.exit_code == 2);
    CHECK_THAT(result.output, ContainsSubstring(flag.substr(0, flag.find(' ')) + " does not go with --model cnn") &&
                                  ContainsSubstring("gpt"));
  }
}

namespace {

// The file's bytes as token ids of so many bytes each, after a header of int32.
std::string write_ids(const TempDir& dir, const std::string& name, const std::string& text, int id_bytes,
                      const std::vector<std::int32_t>& header = {}) {
  std::ofstream file(dir / name, std::ios::binary);
  const auto put = [&](std::int64_t number, int bytes) {
    for (int byte = 0; byte < bytes; ++byte) file.put(static_cast<char>(number >> (8 * byte)));
  };
  for (std::size_t i = 0; i < (header.empty() ? 0 : 256); ++i) put(i < header.size() ? header[i] : 0, 4);
  std::ifstream in(text, std::ios::binary);
  for (char byte; in.get(byte);) put(static_cast<unsigned char>(byte), id_bytes);
  return dir / name;
}

nlohmann::json final_of(const std::string& arguments) {
  const TempDir dir;
  const auto result = run_train(arguments + " --quiet --log-json " + (dir / "log"));
  CAPTURE(arguments, result.output);
  REQUIRE(result.exit_code == 0);
  return read_log(dir / "log").back().at("final");
}

// Refused with one sentence that has these words.
}  // namespace

TEST_CASE("the same tokens as bytes, uint16, uint32 and with llm.c's header give the same losses") {
  const TempDir dir;
  const std::string text = write_text(dir, 4000), ids = kSmall + "--cpu 2 --batch-size 4 --max-steps 3 ";
  const auto as_bytes = losses_of(ids + "--data-file " + text);
  const auto with = [&](const std::string& tokens, const std::string& file) {
    return losses_of(ids + "--vocabulary 256 --tokens " + tokens + " --data-file " + file);
  };
  CHECK(with("uint16", write_ids(dir, "two", text, 2)) == as_bytes);
  CHECK_THAT(run_train(ids + "--data-file " + (dir / "two")).output, ContainsSubstring("two has bytes of 0"));
  CHECK(with("uint32", write_ids(dir, "four", text, 4)) == as_bytes);
  CHECK(with("uint16", write_ids(dir, "llmc", text, 2, {20240520, 1, 4000})) == as_bytes);
  CHECK(with("uint32", write_ids(dir, "llmc4", text, 4, {20240801, 7, 4000})) == as_bytes);
}

TEST_CASE("a network of token ids is judged by loss and perplexity, knows GPT-2's ids by default, and writes nothing") {
  const TempDir dir;
  const std::string ids = write_ids(dir, "ids", write_text(dir, 4000), 2);
  const std::string gpt = kSmall + "--cpu 1 --batch-size 4 --max-steps 2 --tokens uint16 --data-file " + ids;
  const auto result = run_train(gpt + " --save-weights " + (dir / "w") + " --log-json " + (dir / "log"));
  CAPTURE(result.output);
  REQUIRE(result.exit_code == 0);
  CHECK_THAT(result.output, ContainsSubstring("3584 tokens to train on, 384 to judge by, of a vocabulary of 50257") &&
                                ContainsSubstring(", perplexity ") && !ContainsSubstring("per byte") &&
                                !ContainsSubstring("sample of what"));
  const auto last = read_log(dir / "log").back()["final"];
  CHECK(last["perplexity"].get<double>() == Approx(std::exp(last["validation_loss"].get<double>())));
  CHECK(!last.contains("bits_per_byte"));
  CHECK(!last.contains("sample"));
  for (const auto& [name, tensor] : io::load_safetensors(dir / "w"))
    if (name == "head.weight") CHECK(tensor.sizes() == at::IntArrayRef({50257, 32}));
}

TEST_CASE("a file of --val-file is what a text or tokens are judged by, and all of --data-file is trained on") {
  const TempDir dir, others;
  const std::string text = write_text(dir, 4000), val = others / "val";
  std::ofstream(val) << std::string(500, 'a');
  const std::string gpt = kSmall + "--cpu 2 --batch-size 4 --lr 0 --epochs 1 --data-file ";
  const auto apart = final_of(gpt + text + " --val-file " + val);
  CHECK(apart["validation_loss"] != final_of(gpt + text)["validation_loss"]);
  // The same weights, judged by the same samples.
  CHECK(apart["validation_loss"] == final_of(gpt + val + " --val-file " + val)["validation_loss"]);
  CHECK(apart["validation_loss"] ==
        final_of(gpt + write_ids(dir, "ids", text, 2) + " --tokens uint16 --vocabulary 256 --val-file " +
                 write_ids(others, "ids", val, 2))["validation_loss"]);
  // 124 samples, of which 12 are the last tenth, and 62 the last half.
  CHECK(losses_of(gpt + text + " --val-file " + val).size() == 16);
  CHECK(losses_of(gpt + text).size() == 14);
  CHECK(losses_of(gpt + text + " --val-split 0.5").size() == 8);
}

TEST_CASE("wrong files of tokens and flags about them get one sentence that names file, field and flag") {
  const TempDir dir;
  const std::string text = write_text(dir, 4000), two = write_ids(dir, "two", text, 2),
                    four = write_ids(dir, "four", text, 4),
                    header = write_ids(dir, "llmc", text, 2, {20240520, 1, 4000}),
                    version = write_ids(dir, "version", text, 2, {20240520, 3, 4000}), few = dir / "few",
                    table = dir / "table.safetensors";
  std::ofstream(few) << std::string(20, 'x');
  io::save_safetensors(table, {{"inputs", at::zeros({4, 3})}, {"targets", at::zeros({4})}});
  const std::string ids = kSmall + "--tokens uint16 --data-file ", bytes = kSmall + "--data-file ";
  const std::vector<std::pair<std::string, std::vector<std::string>>> cases{
      {ids + version, {"--data-file", version, "version is 3"}},
      {bytes + header, {"--data-file", header, "magic 20240520", "uint16"}},
      {kSmall + "--tokens uint32 --data-file " + header, {"--data-file", header, "uint16"}},
      {ids + four, {"--data-file", four, "every second token is 0", "uint32"}},
      {kSmall + "--tokens uint32 --data-file " + two, {"--data-file", two, "token 0", "vocabulary of 50257"}},
      {ids + two + " --vocabulary 100", {two, "has the id 1", "vocabulary of 100 (0 to 99)", "or more"}},
      {ids + few, {"--data-file", few, "10 tokens"}},
      {ids + two + " --val-file " + few, {"--val-file", few, "10 tokens"}},
      {bytes + text + " --val-file " + few, {"--val-file", few, "20 bytes", "at least 33"}},
      {bytes + text + " --val-file " + text + " --val-split 0.5", {"--val-file", "--val-split"}},
      {bytes + text + " --val-split 1", {"--val-split", "1"}},
      {bytes + text + " --vocabulary 300", {"--vocabulary", "--tokens uint16"}},
      {ids + two + " --sample-bytes 9", {"--sample-bytes", "--tokens"}},
      {bytes + text + " --tokens int16", {"--tokens", "int16", "uint16"}},
      {bytes + text + " --image-size 8", {"--image-size", "a text"}},
      {bytes + table, {"--data-file", table, "is a table"}}};
  for (const auto& [arguments, words] : cases) check_refused(arguments, words);
}

TEST_CASE("a training on tokens goes on with their type and vocabulary, and refuses others") {
  const TempDir dir;
  const std::string ids = write_ids(dir, "ids", write_text(dir, 4000), 2), begin = kSmall + "--batch-size 8 ",
                    checkpoints = " --checkpoint-dir " + (dir / "c");
  const auto all = begin + "--tokens uint16 --vocabulary 300 --val-split 0.25 --data-file " + ids;
  const auto straight = losses_of(all + " --max-steps 6");
  REQUIRE(run_train(all + " --max-steps 3" + checkpoints).exit_code == 0);
  const std::string resume = begin + "--resume auto" + checkpoints;
  for (const std::string other : {"--tokens uint32", "--vocabulary 301", "--val-split 0.5"})
    check_refused(resume + " " + other, {other + " cannot go on"});
  CHECK(losses_of(resume + " --max-steps 6") == std::vector<double>(straight.begin() + 3, straight.end()));
}
