#include "tandem/nn/channels_last.h"

namespace tandem::nn {

void to_channels_last(torch::nn::Module& module) {
  const auto convert = [](at::Tensor tensor) {
    if (tensor.dim() == 4) tensor.set_data(tensor.detach().contiguous(at::MemoryFormat::ChannelsLast));
  };
  for (const at::Tensor& parameter : module.parameters()) convert(parameter);
  for (const at::Tensor& buffer : module.buffers()) convert(buffer);
}

}  // namespace tandem::nn
