#include "weights.h"

#include <algorithm>
#include <filesystem>

#include "io/output_file.h"

namespace train {

void set_weights(Net& net, const tandem::io::NamedTensors& weights, const std::string& path) {
  const auto require = [&](bool holds, const std::string& otherwise) {
    if (!holds) throw tandem::ConfigError("--init-weights " + path + ": " + otherwise);
  };
  auto parameters = net.named_parameters();
  const torch::NoGradGuard no_grad;
  for (const auto& [name, tensor] : weights) {
    at::Tensor* parameter = parameters.find(name);
    require(parameter != nullptr, "the model has no parameter '" + name + "'");
    require(parameter->sizes() == tensor.sizes(), "'" + name + "' has sizes " + c10::str(tensor.sizes()) +
                                                      ", the model needs " + c10::str(parameter->sizes()));
    parameter->copy_(tensor);
  }
  for (const auto& parameter : parameters)
    require(std::any_of(weights.begin(), weights.end(), [&](const auto& w) { return w.first == parameter.key(); }),
            "the parameter '" + parameter.key() + "' is missing");
}

tandem::io::NamedTensors weights_of(const Net& net) {
  tandem::io::NamedTensors tensors;
  for (const auto& parameter : net.named_parameters()) tensors.emplace_back(parameter.key(), parameter.value());
  return tensors;
}

std::string averaged_path(const std::string& weights) {
  std::filesystem::path path(weights);
  return path.replace_extension(".ema" + path.extension().string()).string();
}

void save_weights(const Net& net, const std::string& path, tandem::io::OutputFile& file) {
  const tandem::io::NamedTensors tensors = weights_of(net);
  file.write([&](const tandem::io::WriteBytes& write) {
    tandem::io::write_safetensors(write, path, tensors, {{"format", "pt"}});
  });
}

}  // namespace train
