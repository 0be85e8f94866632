#include "bench_checkpoint.h"

#include <chrono>
#include <filesystem>
#include <functional>
#include <vector>

#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>

#include "io/file_writer.h"
#include "measure/statistics.h"
#include "tandem/runtime/accelerator.h"
#include "tandem/runtime/launch.h"
#include "temporary_directory.h"

namespace tandem_tool {
namespace {

namespace nn = torch::nn;

constexpr std::int64_t kWidth = 1024;

// As many layers as come nearest to `parameters`, at least one.
nn::Sequential make_net(std::int64_t parameters) {
  const std::int64_t of_layer = kWidth * kWidth;
  nn::Sequential net;
  for (std::int64_t layers = std::max<std::int64_t>(1, (parameters + of_layer / 2) / of_layer); layers > 0; --layers)
    net->push_back(nn::Linear(nn::LinearOptions(kWidth, kWidth).bias(false)));
  return net;
}

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// From the tensors' memory, as a save does.
void write_bare(const std::string& path, const std::vector<at::Tensor>& tensors) {
  tandem::io::FileWriter file(path);
  for (const at::Tensor& tensor : tensors) file.write(tensor.const_data_ptr(), tensor.nbytes());
  file.finish();
}

}  // namespace

CheckpointTimes time_checkpoints(const CheckpointRequest& request) {
  const TemporaryDirectory directory(request.directory);
  CheckpointTimes times;
  tandem::launch({.cpu = request.ranks, .cancel = request.cancel}, [&](tandem::Accelerator& accelerator) {
    auto net = make_net(request.parameters);
    auto model = accelerator.prepare(net);
    std::vector<double> save, load, write;
    for (int run = 0; run < request.runs; ++run) {
      save.push_back(seconds_of([&] { accelerator.save_model(model, directory / "model"); }));
      load.push_back(seconds_of([&] { accelerator.load_model(model, directory / "model"); }));
      if (accelerator.is_main())
        write.push_back(
            seconds_of([&] { write_bare(directory / ("bare" + std::to_string(run)), model.parameters()); }));
      accelerator.wait_for_everyone();
    }
    if (!accelerator.is_main()) return;
    for (const at::Tensor& tensor : model.parameters()) times.bytes += tensor.nbytes();
    times.save = measure::spread_of(save).median;
    times.load = measure::spread_of(load).median;
    times.write = measure::spread_of(write).median;
  });
  return times;
}

}  // namespace tandem_tool
