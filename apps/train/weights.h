#pragma once

#include <string>

#include "net.h"
#include "tandem/tandem.h"

namespace tandem::io {
class OutputFile;
}

namespace train {

/// Copies the weights of --init-weights `path` into `net`. Throws tandem::ConfigError when they do not fit it.
void set_weights(Net& net, const tandem::io::NamedTensors& weights, const std::string& path);

/// The parameters of `net`, by name.
tandem::io::NamedTensors weights_of(const Net& net);

/// Where averaged weights are written beside those of --save-weights: "net.ema.safetensors" for "net.safetensors".
std::string averaged_path(const std::string& weights);

/// Writes them to `file`, which is that of --save-weights `path`.
void save_weights(const Net& net, const std::string& path, tandem::io::OutputFile& file);

}  // namespace train
