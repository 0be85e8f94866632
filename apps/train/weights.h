#pragma once

#include <map>
#include <memory>
#include <string>

#include "net.h"
#include "options.h"
#include "tandem/tandem.h"

namespace tandem::io {
class OutputFile;
struct StoredWeights;
}  // namespace tandem::io

namespace train {

/// The weights of --init-weights.
struct InitialWeights {
  std::shared_ptr<const tandem::io::StoredWeights> stored;  ///< null: none
  std::string other_head;  ///< why its head is not this training's, though it may have its sizes; empty: it is
};

/// Copies what fits of --init-weights into `net`, whose head is made anew where it has other sizes or is of other
/// classes. Throws tandem::ConfigError when something of the file fits nothing, something else has other sizes, or
/// nothing fits.
tandem::io::LoadModelReport set_weights(Net& net, const InitialWeights& weights, const Options& options);

/// Where averaged weights are written beside those of --save-weights: "net.ema.safetensors" for "net.safetensors"
/// or "net.pt".
std::string averaged_path(const std::string& weights);

/// A table of what was taken, left and made anew, of lines with ends.
std::string describe(const tandem::io::LoadModelReport& report, const InitialWeights& weights, const std::string& path);

/// What of the backbone is made anew, for people; empty: nothing.
std::string half_made(const tandem::io::LoadModelReport& report, const Net& net);

/// Writes parameters and buffers of `net` to `file`, which is that of --save-weights `path`; of a TorchScript module
/// the whole, when the path ends with .pt. `metadata`: what metadata_of_weights says.
void save_weights(const Net& net, const std::string& path, tandem::io::OutputFile& file,
                  const std::map<std::string, std::string>& metadata);

}  // namespace train
