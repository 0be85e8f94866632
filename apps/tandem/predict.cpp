#include "predict.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <filesystem>
#include <future>
#include <optional>

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <c10/util/StringUtil.h>
#include <nlohmann/json.hpp>

#include "backend/cores.h"
#include "io/json_text.h"
#include "io/model_weights.h"
#include "io/output_file.h"
#include "io/read_file.h"
#include "tandem/core/error.h"
#include "tandem/data/read_image.h"
#include "tandem/data/transforms.h"
#include "tandem/models/script_module.h"
#include "train/make_net.h"
#include "train/model_flags.h"
#include "train/stored_description.h"

namespace tandem_tool {
namespace {

namespace data = tandem::data;
namespace fs = std::filesystem;

constexpr std::size_t kPicturesAtOnce = 32;
constexpr std::int64_t kMostPixels = 16384;            // of a side
constexpr std::uint64_t kMostOfDescription = 1 << 26;  // bytes

// classes.json.
struct Description {
  std::string model;
  std::vector<std::int64_t> hidden;
  std::vector<std::string> classes;
  data::ImageFolderOptions pictures;
  std::int64_t image_size = 0;
};

// Its fields, with errors that name the file and the field.
class Fields {
 public:
  Fields(std::string file, const nlohmann::json& json) : file_(std::move(file)), json_(json) {}

  template <class Value>
  Value get(const char* name, const char* what) const {
    try {
      return json_.at(name).get<Value>();
    } catch (const nlohmann::json::exception&) {
      refuse(name, std::string("has to be ") + what);
    }
  }

  std::int64_t number(const char* name, std::int64_t least, std::int64_t most) const {
    const auto found = json_.find(name);
    if (found != json_.end() && found->is_number_integer())
      if (const auto value = found->get<std::int64_t>(); value >= least && value <= most) return value;
    refuse(name, "has to be a whole number from " + std::to_string(least) + " to " + std::to_string(most));
  }

  [[noreturn]] void refuse(const char* name, const std::string& why) const {
    throw tandem::ConfigError(file_ + ": \"" + name + "\" " + why +
                              (json_.contains(name) ? ", and is " + tandem::io::shown_json(json_.at(name))
                                                    : std::string(", and is missing")));
  }

 private:
  const std::string file_;
  const nlohmann::json& json_;
};

data::ImageFolderOptions pictures_of(const Fields& fields, std::int64_t image_size, const std::string& file) {
  const auto mean = fields.get<std::vector<double>>("mean", "a list of numbers"),
             deviation = fields.get<std::vector<double>>("std", "a list of numbers");
  const std::int64_t channels = fields.number("channels", 1, 3);
  if (channels == 2) fields.refuse("channels", "has to be 1 or 3");
  if (!mean.empty() && mean.size() != static_cast<std::size_t>(channels))
    fields.refuse("mean", "has to have a number for each of the " + std::to_string(channels) + " channels, or none");
  data::ImageFolderOptions options{.exif_orientation = true,
                                   .shorter_side = fields.number("resize", image_size, kMostPixels),
                                   .crop = data::ImageSize{image_size, image_size},
                                   .channels = channels};
  try {
    if (!mean.empty() || !deviation.empty()) options.transform = data::transforms::Normalize(mean, deviation);
  } catch (const tandem::ConfigError& error) {
    throw tandem::ConfigError(file + ": \"mean\" and \"std\": " + error.what());
  }
  return options;
}

[[noreturn]] void refuse_model(const std::string& file, const std::string& model) {
  throw tandem::ConfigError(file + ": is of a network that is not for pictures" +
                            (model.empty() ? "" : " (" + model + ")") + "; predict says what is in pictures only");
}

Description read_description(const std::string& text, const std::string& file) {
  const nlohmann::json json = tandem::io::parse_json(text);
  if (!json.is_object()) throw tandem::ConfigError(file + ": is no JSON object, as train writes it");
  const Fields fields(file, json);
  if (fields.get<std::string>("format", "a text") != "tandem-classes-1")
    fields.refuse("format", "has to be \"tandem-classes-1\"");
  Description description;
  description.model = fields.get<std::string>("model", "a text");
  if (!json.contains("image_size")) refuse_model(file, description.model + " on a table");
  if (description.model == "mlp")
    description.hidden = fields.get<std::vector<std::int64_t>>("hidden", "a list of widths");
  for (const std::int64_t width : description.hidden)
    if (width < 1 || width > 65536) fields.refuse("hidden", "has to be widths from 1 to 65536");
  description.classes = fields.get<std::vector<std::string>>("classes", "a list of texts");
  if (description.classes.empty()) fields.refuse("classes", "has to name classes");
  description.image_size = fields.number("image_size", 1, kMostPixels);
  description.pictures = pictures_of(fields, description.image_size, file);
  return description;
}

Description find_description(const PredictRequest& request) {
  if (!fs::exists(request.weights)) throw tandem::ConfigError(request.weights + " does not exist");
  train::check_is_one_checkpoint("--weights", request.weights);
  if (const std::string& file = request.classes; !file.empty())
    return read_description(tandem::io::read_text(file, file, kMostOfDescription), file);
  const auto found = train::find_description(request.weights);
  if (!found) {
    const fs::path weights = tandem::io::follow_links(request.weights);
    const fs::path folder = fs::is_directory(weights) ? weights : weights.parent_path();
    throw tandem::ConfigError((folder / "classes.json").string() +
                              " does not exist, which train writes beside weights of classes; name it with --classes");
  }
  if (found->text.empty()) refuse_model(found->file, found->model);
  return read_description(found->text, found->file);
}

// A whole module, if that is what lies there; torch.save's files of weights may have the same ending.
std::shared_ptr<train::Net> script_at(const std::string& path, bool has_to_be) {
  if (!has_to_be && !path.ends_with(".pt")) return nullptr;
  try {
    return tandem::models::load_script(path);
  } catch (const tandem::CheckpointError&) {
    if (has_to_be) throw;
    return nullptr;
  }
}

// What stands before the names of `net` in the file, as where weights are a dict within a checkpoint's:
// --weights-prefix, or the only one with which all are there; empty: nothing.
std::string prefix_of(const tandem::io::StoredWeights& stored, const train::Net& net, const PredictRequest& request) {
  const std::string& given = request.weights_prefix;
  if (!given.empty()) return given.ends_with('.') ? given : given + '.';
  const auto names = net.named_parameters().keys();
  const std::string first = '.' + names.front();
  std::vector<std::string> prefixes;
  for (const auto& [name, tensor] : stored.tensors) {
    if (!name.ends_with(first)) continue;
    const std::string prefix = name.substr(0, name.size() - first.size() + 1);
    const auto is_there = [&](const std::string& its) { return stored.tensors.contains(prefix + its); };
    if (std::all_of(names.begin(), names.end(), is_there)) prefixes.push_back(prefix);
  }
  if (prefixes.empty() || stored.tensors.contains(names.front())) return {};
  if (prefixes.size() == 1) return prefixes.front();
  throw tandem::ConfigError(request.weights + ": has the network's weights with the prefixes " +
                            c10::Join(", ", prefixes) + "; choose with --weights-prefix");
}

void load_weights(train::Net& net, const PredictRequest& request) {
  const auto stored = tandem::io::read_weights_at(request.weights);
  const std::string prefix = prefix_of(stored, net, request);
  tandem::io::LoadModelOptions options;
  if (!prefix.empty())
    options.rename = [&](const std::string& name) {
      return name.starts_with(prefix) ? name.substr(prefix.size()) : std::string();
    };
  tandem::io::plan_load(stored, net, options).copy();
}

std::shared_ptr<train::Net> make_net(const PredictRequest& request, const Description& description) {
  if (auto script = script_at(request.weights, description.model == "script")) return script;
  train::ModelFlags flags;
  flags.model = description.model;
  if (!description.hidden.empty()) flags.hidden = description.hidden;
  const train::Options options = train::read_model_flags(flags);
  if (options.model == train::ModelKind::script || train::is_text_model(options.model))
    throw tandem::ConfigError("'" + description.model + "' is no network for pictures that train knows");
  const auto net = train::make_image_net(options, {.channels = description.pictures.channels,
                                                   .size = description.image_size,
                                                   .classes = static_cast<std::int64_t>(description.classes.size())});
  load_weights(*net, request);
  return net;
}

struct Batch {
  std::vector<Prediction> predictions;
  std::vector<at::Tensor> images;  // undefined where there is a problem
};

// Reads pictures on as many threads as there are cores.
Batch read_batch(std::vector<Prediction> predictions, const data::ImageFolderOptions& options, std::size_t threads) {
  Batch batch{std::move(predictions), {}};
  batch.images.resize(batch.predictions.size());
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t i = next++; i < batch.images.size(); i = next++) {
      if (!batch.predictions[i].problem.empty()) continue;
      try {
        batch.images[i] = data::read_image(batch.predictions[i].file, options);
      } catch (const tandem::DataError& error) {
        batch.predictions[i].problem = error.what();
      }
    }
  };
  std::vector<std::future<void>> others;
  for (std::size_t i = 1; i < std::min(threads, batch.images.size()); ++i)
    others.push_back(std::async(std::launch::async, work));
  work();
  for (auto& other : others) other.get();
  return batch;
}

at::Tensor probabilities_of(train::Net& net, const at::Tensor& images, std::size_t classes) {
  const at::Tensor scores = net.forward(images);
  if (scores.dim() != 2 || scores.size(0) != images.size(0) || scores.size(1) != static_cast<std::int64_t>(classes))
    throw tandem::ConfigError("the network gives scores of sizes " + c10::str(scores.sizes()) + " for pictures of " +
                              c10::str(images.sizes()) + "; " + std::to_string(classes) + " classes need [" +
                              std::to_string(images.size(0)) + ", " + std::to_string(classes) + "]");
  return scores.to(at::kDouble).softmax(1).contiguous();
}

// The likeliest first, of equal ones that with the lower label.
std::vector<Guess> best_of(const double* probabilities, const std::vector<std::string>& classes, std::size_t count) {
  std::vector<std::size_t> labels(classes.size());
  for (std::size_t i = 0; i < labels.size(); ++i) labels[i] = i;
  const auto end = labels.begin() + static_cast<std::ptrdiff_t>(std::min(count, labels.size()));
  std::partial_sort(labels.begin(), end, labels.end(), [&](std::size_t a, std::size_t b) {
    return probabilities[a] != probabilities[b] ? probabilities[a] > probabilities[b] : a < b;
  });
  std::vector<Guess> best;
  for (auto label = labels.begin(); label != end; ++label) best.push_back({classes[*label], probabilities[*label]});
  return best;
}

void judge(Batch& batch, train::Net& net, const Description& description, std::size_t top) {
  std::vector<at::Tensor> images;
  for (const at::Tensor& image : batch.images)
    if (image.defined()) images.push_back(image);
  if (images.empty()) return;
  const std::size_t classes = description.classes.size();
  const at::Tensor probabilities = probabilities_of(net, at::stack(images), classes);
  const double* row = probabilities.const_data_ptr<double>();
  for (std::size_t i = 0; i < batch.images.size(); ++i) {
    if (!batch.images[i].defined()) continue;
    Prediction& prediction = batch.predictions[i];
    if (std::any_of(row, row + classes, [](double value) { return std::isnan(value); }))
      prediction.problem = prediction.file + ": the network gives no numbers (NaN)";
    else
      prediction.top = best_of(row, description.classes, top);
    row += classes;
  }
}

// Files as they were named, and what folders hold.
std::vector<Prediction> list(const std::vector<std::string>& named) {
  std::vector<Prediction> all;
  for (const std::string& name : named) {
    if (std::error_code error; !fs::is_directory(name, error)) {
      all.push_back({name, {}, {}});
      continue;
    }
    try {
      for (std::string& file : data::list_images(name)) all.push_back({std::move(file), {}, {}});
    } catch (const tandem::DataError& error) {
      all.push_back({name, {}, error.what()});
    }
  }
  return all;
}

}  // namespace

void predict(const PredictRequest& request, const std::function<void(const Prediction&)>& on_prediction) {
  const Description description = find_description(request);
  const auto net = make_net(request, description);
  net->eval();
  const std::size_t cores = std::max<std::size_t>(tandem::allowed_cores().size(), 1);
  at::set_num_threads(static_cast<int>(cores));
  std::vector<Prediction> all = list(request.pictures);
  // The next batch is read while the network sees one.
  const auto begin_reading = [&](std::size_t first) {
    const auto end = all.begin() + static_cast<std::ptrdiff_t>(std::min(first + kPicturesAtOnce, all.size()));
    std::vector<Prediction> part(all.begin() + static_cast<std::ptrdiff_t>(std::min(first, all.size())), end);
    return std::async(std::launch::async, [part = std::move(part), &description, cores] {
      return read_batch(part, description.pictures, cores);
    });
  };
  const at::NoGradGuard no_grad;
  auto reading = begin_reading(0);
  for (std::size_t first = 0; first < all.size(); first += kPicturesAtOnce) {
    Batch batch = reading.get();
    reading = begin_reading(first + kPicturesAtOnce);
    judge(batch, *net, description, request.top);
    for (const Prediction& prediction : batch.predictions) on_prediction(prediction);
  }
}

}  // namespace tandem_tool
