#include "default_generator_kernels.h"

#include <map>
#include <memory>
#include <string>

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/jit_type.h>
#include <torch/library.h>

#include "tandem/rng/generators.h"

namespace tandem::rng {
namespace {

bool takes_generator(const c10::Argument& argument) {
  const auto* optional = argument.type()->castRaw<c10::OptionalType>();
  return optional && optional->getElementType()->kind() == c10::TypeKind::GeneratorType;
}

// Where the operator draws: its device argument if it has one, or the device of its tensors; LibTorch's default is CPU.
c10::Device device_of_call(at::ArrayRef<c10::IValue> arguments) {
  for (const c10::IValue& argument : arguments)
    if (argument.isDevice()) return argument.toDevice();
  for (const c10::IValue& argument : arguments) {
    if (argument.isTensor() && argument.toTensor().defined()) return argument.toTensor().device();
    if (argument.isTensorList() && !argument.toTensorVector().empty())
      return argument.toTensorVector().front().device();
  }
  return c10::Device(c10::kCPU);
}

at::Generator default_generator_for(c10::Device device) {
  const RankGenerators& generators = *current_generators();
  if (device.is_cpu()) return generators.cpu;
  if (device.is_cuda() && device.has_index() && static_cast<std::size_t>(device.index()) < generators.cuda.size())
    return generators.cuda[static_cast<std::size_t>(device.index())];
  return {};
}

void fill_in_generator(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const auto& schema = op.schema().arguments();
  const auto arguments = torch::jit::last(*stack, schema.size());
  for (std::size_t i = 0; i < schema.size(); ++i) {
    if (!takes_generator(schema[i]) || !arguments[i].isNone() || !current_generators()) continue;
    if (at::Generator generator = default_generator_for(device_of_call(arguments)); generator.defined())
      torch::jit::peek(*stack, i, schema.size()) = std::move(generator);
  }
  op.redispatchBoxed(keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, kDefaultGeneratorKey), stack);
}

class Registration {
 public:
  Registration() {
    auto& dispatcher = c10::Dispatcher::singleton();
    fallthrough_ =
        std::make_unique<torch::Library>(torch::Library::IMPL, "_", kDefaultGeneratorKey, __FILE__, __LINE__);
    fallthrough_->fallback(torch::CppFunction::makeFallthrough());
    for (const c10::OperatorName& name : dispatcher.getAllOpNames()) {
      const auto op = dispatcher.findSchema(name);
      if (!op) continue;
      for (const c10::Argument& argument : op->schema().arguments()) {
        if (!takes_generator(argument)) continue;
        library_of(name).impl(c10::toString(name).c_str(),
                              torch::CppFunction::makeFromBoxedFunction<&fill_in_generator>());
        break;
      }
    }
  }

 private:
  torch::Library& library_of(const c10::OperatorName& name) {
    const std::string space(name.getNamespace().value_or("aten"));
    auto& library = libraries_[space];
    if (!library)
      library = std::make_unique<torch::Library>(torch::Library::IMPL, space, kDefaultGeneratorKey, __FILE__, __LINE__);
    return *library;
  }

  std::unique_ptr<torch::Library> fallthrough_;
  std::map<std::string, std::unique_ptr<torch::Library>> libraries_;
};

}  // namespace

void register_default_generator_kernels() { static const Registration registration; }

}  // namespace tandem::rng
