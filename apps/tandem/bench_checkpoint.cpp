#include "bench_checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <functional>
#include <vector>

#include <c10/util/StringUtil.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>

#include "io/file_writer.h"
#include "measure/statistics.h"
#include "tandem/runtime/accelerator.h"
#include "tandem/runtime/launch.h"
#include "temporary_directory.h"

namespace tandem_tool {
namespace {

namespace nn = torch::nn;

// As many layers as come nearest to `parameters`, at least one.
nn::Sequential make_net(std::int64_t parameters) {
  const std::int64_t width = parameters >= 50'000'000 ? 4096 : 512, of_layer = width * (width + 1);
  nn::Sequential net;
  for (std::int64_t layers = std::max<std::int64_t>(1, (parameters + of_layer / 2) / of_layer); layers > 0; --layers) {
    net->push_back(nn::Linear(width, width));
    net->push_back(nn::ReLU());
  }
  return net;
}

void write_bare(const std::string& path, std::uint64_t bytes) {
  const std::string part(4 << 20, 'x');
  tandem::io::FileWriter file(path);
  for (std::uint64_t done = 0; done < bytes; done += part.size())
    file.write(part.data(), static_cast<std::size_t>(std::min<std::uint64_t>(part.size(), bytes - done)));
  file.finish();
}

std::uint64_t bytes_in(const std::string& directory) {
  std::uint64_t bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) bytes += entry.file_size();
  return bytes;
}

}  // namespace

CheckpointTimes time_checkpoints(const CheckpointRequest& request) {
  const TemporaryDirectory directory(request.directory);
  CheckpointTimes times;
  tandem::launch({.cpu = request.ranks, .cancel = request.cancel}, [&](tandem::Accelerator& accelerator) {
    auto net = make_net(request.parameters);
    torch::optim::AdamW adamw(net->parameters());
    auto [model, optimizer] = accelerator.prepare(net, adamw);
    const at::Tensor input = at::randn({8, net->parameters()[0].size(1)});
    auto train = [&, model = model, optimizer = optimizer]() mutable {
      accelerator.backward(model(input).square().mean());
      optimizer.step();
      optimizer.zero_grad();
    };
    train();
    train();
    std::vector<double> save, stop, background, load, write;
    for (int run = 0; run < request.runs; ++run) {
      const std::string state = directory / c10::str("state", run), later = directory / c10::str("later", run);
      const auto timed = [&](const std::function<void()>& work) {
        accelerator.wait_for_everyone();
        return measure::seconds_of([&] {
          work();
          accelerator.wait_for_everyone();
        });
      };
      save.push_back(timed([&] { accelerator.save_state(state); }));
      double stopped = 0;
      background.push_back(timed([&] {
        stopped = measure::seconds_of([&] { accelerator.save_state(later, {.background = true}); });
        accelerator.wait_for_saves();
      }));
      if (run > 0 || request.runs == 1) stop.push_back(stopped);
      load.push_back(timed([&] { accelerator.load_state(state); }));
      if (accelerator.is_main()) {
        times.bytes = bytes_in(state);
        write.push_back(measure::seconds_of([&] { write_bare(directory / "bare", times.bytes); }));
        for (const std::string& done : {state, later, directory / "bare"}) std::filesystem::remove_all(done);
      }
      accelerator.wait_for_everyone();
    }
    if (!accelerator.is_main()) return;
    times.save = measure::spread_of(save).median;
    times.stop = measure::spread_of(stop).median;
    times.background = measure::spread_of(background).median;
    times.load = measure::spread_of(load).median;
    times.write = measure::spread_of(write).median;
  });
  return times;
}

}  // namespace tandem_tool
