#include "default_generator_kernels.h"

#include <array>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include <ATen/Context.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/jit_type.h>
#include <c10/core/impl/VirtualGuardImpl.h>
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
  RankGenerators& generators = *current_generators();
  if (device.is_cpu()) return generators.cpu;
  if (!device.is_cuda()) return {};
  const auto current = [&] { return c10::impl::VirtualGuardImpl(device.type()).getDevice().index(); };
  const auto index = static_cast<std::size_t>(device.has_index() ? device.index() : current());
  if (index < generators.cuda.size() && generators.cuda[index].defined()) return generators.cuda[index];
  if (!generators.cuda_seed) return {};
  if (index >= generators.cuda.size()) generators.cuda.resize(index + 1);
  at::Generator& made = generators.cuda[index];
  made = at::globalContext()
             .getAcceleratorHooksInterface(device.type())
             .getNewGenerator(static_cast<c10::DeviceIndex>(index));
  made.set_current_seed(*generators.cuda_seed);
  return made;
}

// Given none, or the process's default by name.
bool means_default(const c10::IValue& generator) {
  if (generator.isNone()) return true;
  const at::Generator given = generator.toGenerator();
  return given.defined() && (given.device().is_cpu() || given.device().is_cuda()) &&
         given == at::globalContext().defaultGenerator(given.device());
}

void fill_in_generator(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const auto& schema = op.schema().arguments();
  const auto arguments = torch::jit::last(*stack, schema.size());
  for (std::size_t i = 0; i < schema.size(); ++i) {
    if (!takes_generator(schema[i]) || !current_generators() || !means_default(arguments[i])) continue;
    if (at::Generator generator = default_generator_for(device_of_call(arguments)); generator.defined())
      torch::jit::peek(*stack, i, schema.size()) = std::move(generator);
  }
  op.redispatchBoxed(keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, kDefaultGeneratorKey), stack);
}

// These draw from the default generator of their device, and take no other one. (Those of their kind that are made of
// other operators need nothing, nor does cuDNN's RNN, which takes its seed from the CPU's generator.)
constexpr const char* kWithoutGenerator[] = {
    "aten::native_dropout",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_fused_attention_overrideable",
    "aten::_flash_attention_forward",
    "aten::_efficient_attention_forward",
    "aten::_cudnn_attention_forward",
};

// While alive, the process's default generator of a GPU draws what `own` would. Ranks that share the GPU take turns,
// for as long as the host needs to enqueue.
class AsDefault {
 public:
  explicit AsDefault(const at::Generator& own)
      : lock_(mutex_of(own.device())),
        default_(at::globalContext().defaultGenerator(own.device())),
        before_(default_.graphsafe_get_state()) {
    default_.graphsafe_set_state(own);
    within = true;
  }
  ~AsDefault() {
    within = false;
    default_.graphsafe_set_state(before_);
  }
  AsDefault(const AsDefault&) = delete;
  AsDefault& operator=(const AsDefault&) = delete;

  static inline thread_local bool within = false;  // such an operator may call another one

 private:
  static std::mutex& mutex_of(c10::Device device) {
    static std::array<std::mutex, std::numeric_limits<c10::DeviceIndex>::max()> mutexes;
    return mutexes.at(static_cast<std::size_t>(device.index()));
  }

  const std::lock_guard<std::mutex> lock_;
  at::Generator default_;
  const at::Generator before_;
};

void draw_as_default(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const auto device = device_of_call(torch::jit::last(*stack, op.schema().arguments().size()));
  const auto after = keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, kDefaultGeneratorKey);
  const at::Generator own =
      device.is_cuda() && !AsDefault::within && current_generators() ? default_generator_for(device) : at::Generator();
  if (!own.defined()) return op.redispatchBoxed(after, stack);
  const AsDefault scope(own);
  op.redispatchBoxed(after, stack);
}

class Registration {
 public:
  Registration() {
    auto& dispatcher = c10::Dispatcher::singleton();
    fallthrough_ =
        std::make_unique<torch::Library>(torch::Library::IMPL, "_", kDefaultGeneratorKey, __FILE__, __LINE__);
    fallthrough_->fallback(torch::CppFunction::makeFallthrough());
    for (const char* name : kWithoutGenerator)
      if (dispatcher.findSchema({name, ""}))
        library_of({name, ""}).impl(name, torch::CppFunction::makeFromBoxedFunction<&draw_as_default>());
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
