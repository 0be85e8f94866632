#include "support/fake_module.h"

#include <chrono>
#include <string>
#include <thread>

namespace tandem::test {

FakeModule::FakeModule() {
  fake::install();
  fake_nccl->on_access = [](void* stream, const void* data, std::size_t bytes, bool write) {
    (write ? fake::note_write : fake::note_read)(stream, data, bytes);
  };
}

std::vector<cuda::DeviceFacts> FakeModule::devices() {
  std::vector<cuda::DeviceFacts> all;
  for (int device = 0; device < fake::kDevices; ++device)
    all.push_back(
        {.name = "fake", .major = 9, .minor = 0, .memory = 1 << 30, .pci_bus_id = "none of " + std::to_string(device)});
  return all;
}

std::unique_ptr<Graph> FakeModule::make_graph() {
  if (!graphs_work) throw Error("the fake's graphs are broken");
  return fake::make_graph();
}

// Runs on the host, at once; noted as of the stream.
void FakeModule::reduce(const comm::Reduction& reduction, void* stream) {
  const std::size_t bytes = reduction.count * size_of(reduction.type);
  for (const void* input : reduction.inputs) fake::note_read(stream, input, bytes);
  for (const void* output : reduction.outputs) fake::note_write(stream, output, bytes);
  std::vector<void*> outputs = reduction.outputs;
  while (hangs && reductions >= good_reductions) std::this_thread::sleep_for(std::chrono::seconds(1));
  const bool arrives = transport_works && reductions < good_reductions;
  if (!arrives && outputs.size() > 1) outputs.pop_back();
  reduce_elements(reduction.type, reduction.op, reduction.inputs, outputs, 0,
                  static_cast<std::int64_t>(reduction.count));
  reductions += 1;
}

}  // namespace tandem::test
