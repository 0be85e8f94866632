// Every operator of the dispatcher that takes an optional generator draws from the rank's.
#include <functional>
#include <map>
#include <set>

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/jit_type.h>

#include "rng/default_generator_kernels.h"
#include "support/catch.h"
#include "tandem/rng/generators.h"

#include <torch/types.h>

using namespace tandem;

namespace {

bool is_generator(const c10::Argument& argument) {
  const auto* optional = argument.type()->castRaw<c10::OptionalType>();
  return optional && optional->getElementType()->kind() == c10::TypeKind::GeneratorType;
}

std::vector<c10::OperatorHandle> operators_with_generator() {
  std::vector<c10::OperatorHandle> found;
  for (const auto& name : c10::Dispatcher::singleton().getAllOpNames()) {
    const auto op = c10::Dispatcher::singleton().findSchema(name);
    if (!op) continue;
    const auto& arguments = op->schema().arguments();
    if (std::any_of(arguments.begin(), arguments.end(), is_generator)) found.push_back(*op);
  }
  return found;
}

// Cannot be run on a CPU tensor; shown to be covered by the kernel being registered.
const std::map<std::string, std::string> kNotOnCpu{
    {"aten::_fused_dropout", "CUDA only"},
    {"aten::_fused_dropout.out", "CUDA only"},
    {"aten::_cudnn_init_dropout_state", "CUDA only"},
};

// Arguments that the default below does not fit.
using Special = std::map<std::string, std::function<c10::IValue()>>;
const std::map<std::string, Special> kSpecial{
    {"aten::binomial",
     {{"count",
       [] {
         return at::full({4, 4}, 10.0);
       }},
      {"prob",
       [] {
         return at::full({4, 4}, 0.5);
       }}}},
    {"aten::multinomial", {{"num_samples", [] { return c10::IValue(int64_t{2}); }}}},
    {"aten::geometric_", {{"p", [] { return c10::IValue(0.5); }}}},
    {"aten::geometric", {{"p", [] { return c10::IValue(0.5); }}}},
    {"aten::random_.from", {{"to", [] { return c10::IValue(int64_t{50}); }}}},
    {"aten::random.from", {{"to", [] { return c10::IValue(int64_t{50}); }}}},
    {"aten::random.from_out", {{"to", [] { return c10::IValue(int64_t{50}); }}}},
    {"aten::uniform_", {{"to", [] { return c10::IValue(2.0); }}}},
    {"aten::uniform", {{"to", [] { return c10::IValue(2.0); }}}},
    {"aten::uniform.out", {{"to", [] { return c10::IValue(2.0); }}}},
};

const Special* special_for(const std::string& name) {
  if (auto found = kSpecial.find(name); found != kSpecial.end()) return &found->second;
  const auto base = name.substr(0, name.find('.'));
  if (auto found = kSpecial.find(base); found != kSpecial.end()) return &found->second;
  return nullptr;
}

c10::IValue value_for(const std::string& op, const c10::Argument& argument) {
  if (const auto* special = special_for(op))
    if (auto found = special->find(argument.name()); found != special->end()) return found->second();
  const bool whole_number = op.find("randint") != std::string::npos || op.find("randperm") != std::string::npos;
  // Outputs that a random integer operator writes to are of that type.
  const bool integer_out = whole_number || op.find("multinomial") != std::string::npos;
  const auto kind = argument.type()->kind();
  const std::string& name = argument.name();
  if (is_generator(argument)) return {};
  if (argument.default_value() && name != "training" && name != "train") return *argument.default_value();
  if (kind == c10::TypeKind::OptionalType) return {};
  if (kind == c10::TypeKind::TensorType) {
    if (name == "high") return at::scalar_tensor(16, at::kLong);
    if (name == "out") return integer_out ? at::zeros({4, 4}, at::kLong) : at::zeros({4, 4});
    // A negative input makes rrelu draw; probabilities and rates must not be negative.
    return op.find("rrelu") != std::string::npos && name == "self" ? at::full({4, 4}, -0.5) : at::full({4, 4}, 0.5);
  }
  if (kind == c10::TypeKind::ListType) return c10::List<int64_t>({4, 4});
  if (kind == c10::TypeKind::IntType || kind == c10::TypeKind::SymIntType) {
    if (name == "low" || name == "from") return int64_t{0};
    return int64_t{16};
  }
  if (kind == c10::TypeKind::FloatType || kind == c10::TypeKind::NumberType) return 0.5;
  if (kind == c10::TypeKind::BoolType) return true;
  throw std::runtime_error(op + ": no value for argument " + name + " of type " + argument.type()->str());
}

torch::jit::Stack make_arguments(const c10::OperatorHandle& op, const std::string& name) {
  torch::jit::Stack stack;
  for (const auto& argument : op.schema().arguments()) stack.push_back(value_for(name, argument));
  // randperm fills a vector.
  if (name.rfind("aten::randperm", 0) == 0)
    for (auto& value : stack)
      if (value.isTensor()) value = at::zeros({16}, at::kLong);
  return stack;
}

std::vector<at::Tensor> call(const c10::OperatorHandle& op, const std::string& name) {
  auto stack = make_arguments(op, name);
  op.callBoxed(stack);
  std::vector<at::Tensor> results;
  for (const auto& value : stack)
    if (value.isTensor()) results.push_back(value.toTensor().clone());
  return results;
}

}  // namespace

TEST_CASE("every operator with an optional generator draws from the guard's, with the numbers of the default's") {
  const torch::NoGradGuard no_grad;
  const auto operators = operators_with_generator();
  CHECK(operators.size() >= 80);
  int run = 0, listed = 0;
  for (const auto& op : operators) {
    const std::string name = c10::toString(op.operator_name());
    INFO(name);
    auto generators = rng::make_generators(21, 0);
    if (kNotOnCpu.count(name)) {
      rng::register_default_generator_kernels();
      CHECK(op.hasKernelForDispatchKey(rng::kDefaultGeneratorKey));
      listed += 1;
      continue;
    }
    torch::manual_seed(21);
    std::vector<at::Tensor> expected, drawn;
    try {
      expected = call(op, name);
    } catch (const c10::Error& error) {
      FAIL_CHECK(error.what_without_backtrace());
      continue;
    }
    const auto default_state = at::detail::getDefaultCPUGenerator().get_state();
    const auto state = generators.cpu.get_state();
    {
      const rng::DefaultGeneratorGuard guard(generators);
      REQUIRE_NOTHROW(drawn = call(op, name));
    }
    CHECK(at::equal(at::detail::getDefaultCPUGenerator().get_state(), default_state));
    CHECK_FALSE(at::equal(generators.cpu.get_state(), state));
    CHECK(at::equal(generators.cpu.get_state(), default_state));
    CHECK(drawn.size() == expected.size());
    for (std::size_t i = 0; i < drawn.size(); ++i) CHECK(at::equal(drawn[i], expected[i]));
    run += 1;
  }
  CHECK(run + listed == static_cast<int>(operators.size()));
}
