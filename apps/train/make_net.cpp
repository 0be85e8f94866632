#include "make_net.h"

#include <filesystem>

#include "model_flags.h"
#include "tandem/core/error.h"
#include "tandem/models/gpt.h"
#include "tandem/models/gpt2.h"
#include "tandem/models/resnet.h"
#include "tandem/models/script_module.h"
#include "tandem/models/vision_transformer.h"

namespace train {

namespace models = tandem::models;

std::shared_ptr<Net> make_image_net(const Options& options, const models::ImageShape& shape) {
  const models::ResNetOptions resnet{
      .classes = shape.classes, .channels = shape.channels, .checkpoint = options.checkpoint_activations};
  try {
    switch (options.model) {
      case ModelKind::cnn: return models::cnn(shape);
      case ModelKind::resnet18: return models::resnet18(resnet);
      case ModelKind::resnet34: return models::resnet34(resnet);
      case ModelKind::resnet50: return models::resnet50(resnet);
      case ModelKind::script: return models::load_script(options.script);
      case ModelKind::vit_b_16:
        return models::vit_b_16({.classes = shape.classes,
                                 .channels = shape.channels,
                                 .image_size = shape.size,
                                 .checkpoint = options.checkpoint_activations});
      default: return models::mlp(options.hidden, shape);
    }
  } catch (const tandem::CheckpointError& error) {
    const bool is_there = std::filesystem::exists(options.script);
    throw tandem::ConfigError(std::string("--model ") + error.what() +
                              (is_there ? "; weights alone are for --init-weights" : ""));
  } catch (const tandem::ConfigError& error) {
    throw tandem::ConfigError("--model " + (options.script.empty() ? name_of(options.model) : options.script) + ": " +
                              error.what());
  }
}

std::shared_ptr<Net> make_table_net(const Options& options, at::IntArrayRef sizes, std::int64_t outputs) {
  if (options.model == ModelKind::mlp) return models::mlp(options.hidden, c10::multiply_integers(sizes), outputs);
  if (options.model == ModelKind::script) return make_image_net(options);
  return make_image_net(options, {.channels = sizes[0], .size = sizes[1], .classes = outputs});
}

std::shared_ptr<Net> make_text_net(const Options& options) {
  const models::GptOptions& sizes = options.gpt;
  if (options.model == ModelKind::gpt2)
    return std::make_shared<models::Gpt2>(models::Gpt2Options{.vocabulary = sizes.vocabulary,
                                                              .layers = sizes.layers,
                                                              .width = sizes.width,
                                                              .heads = sizes.heads,
                                                              .dropout = sizes.dropout,
                                                              .checkpoint = options.checkpoint_activations});
  models::GptOptions gpt = sizes;
  gpt.checkpoint = options.checkpoint_activations;
  return std::make_shared<models::Gpt>(gpt);
}

}  // namespace train
