// tandem predict: what a trained network says of pictures.
#include <algorithm>
#include <cstdio>
#include <memory>

#include "command.h"
#include "io/json_text.h"
#include "predict.h"
#include "train/printable.h"

namespace tandem_tool {
namespace {

struct PredictOptions : PredictRequest {
  bool json = false;
};

void print_json(const Prediction& prediction) {
  nlohmann::ordered_json top = nlohmann::ordered_json::array();
  for (const Guess& guess : prediction.top) top.push_back({{"class", guess.name}, {"probability", guess.probability}});
  const nlohmann::ordered_json line{{"file", prediction.file}, {"top", top}};
  std::printf("%s\n", tandem::io::shown_json(line).c_str());
}

void print_rows(const Prediction& prediction) {
  std::printf("%s\n", train::printable(prediction.file).c_str());
  for (const Guess& guess : prediction.top)
    std::printf("  %8.4f %%  %s\n", 100 * guess.probability, train::printable(guess.name).c_str());
}

int run(const PredictOptions& options) {
  bool all_are_read = true;
  predict(options, [&](const Prediction& prediction) {
    if (prediction.problem.empty()) {
      options.json ? print_json(prediction) : print_rows(prediction);
    } else {
      all_are_read = false;
      std::fflush(stdout);  // in order where both are shown together
      std::fprintf(stderr, "tandem: %s\n", prediction.problem.c_str());
    }
  });
  return all_are_read ? apps::kDone : apps::kFailed;
}

}  // namespace

void add_predict(CLI::App& tandem, Commands& commands) {
  auto* app = tandem.add_subcommand("predict", "Says what a trained network sees in pictures.");
  const auto options = std::make_shared<PredictOptions>();
  app->add_option("pictures", options->pictures, "JPEG, PNG and WebP files, and folders of them")->required();
  app->add_option("--weights", options->weights,
                  "of train: a file of safetensors or torch.save's, a directory, a checkpoint, or a TorchScript module "
                  "as .pt")
      ->type_name("FILE")
      ->required();
  app->add_option("--weights-prefix", options->weights_prefix,
                  "what stands before the names of the network in the file, as model in a checkpoint of Python's "
                  "(default: what fits)");
  app->add_option("--classes", options->classes,
                  "what train writes beside weights (default: what the weights say, or classes.json beside them)")
      ->type_name("FILE");
  app->add_option("--top", options->top, "classes to show of each picture, the likeliest first")
      ->check(CLI::Range(std::size_t{1}, std::size_t{1'000'000}))
      ->capture_default_str();
  app->add_flag("--json", options->json, "an object a line and picture");
  app->footer(
      "Pictures are prepared as train prepares those that it judges by. One that cannot be read is told, and costs "
      "only\n"
      "exit code 1. CPU cores do the work.\n\n"
      "Examples:\n  tandem predict --weights runs/best.safetensors holiday/*.jpg\n"
      "  tandem predict --weights net.pt --classes runs/classes.json --top 1 --json photos");
  commands.push_back({app, [options] { return run(*options); }});
}

}  // namespace tandem_tool
