// What a trained network says of pictures.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

namespace tandem_tool {

/// A class, and how sure the network is of it.
struct Guess {
  std::string name;
  double probability;
};

/// What is said of a picture: the likeliest classes first, or why there is nothing to say.
struct Prediction {
  std::string file;
  std::vector<Guess> top;
  std::string problem;
};

/// What is asked.
struct PredictRequest {
  std::string weights;                ///< of a network that train knows, or a whole TorchScript module
  std::string weights_prefix;         ///< what stands before the network's names there; empty: what fits
  std::string classes;                ///< classes.json; empty: what the weights say, or the file beside them
  std::vector<std::string> pictures;  ///< files, and folders of them
  std::size_t top = 5;                ///< classes of each picture, if there are as many
};

/// Prepares pictures as `train` prepares those that it judges by, on all cores, and gives `on_prediction` what the
/// network says of each, in order. Throws tandem::ConfigError and tandem::CheckpointError before the first where the
/// network cannot be had. A picture that cannot be read, and a folder without pictures, is a Prediction with a problem.
void predict(const PredictRequest& request, const std::function<void(const Prediction&)>& on_prediction);

}  // namespace tandem_tool
