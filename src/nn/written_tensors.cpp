#include "nn/written_tensors.h"

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include <ATen/Functions.h>
#include <ATen/SequenceNumber.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/function.h>
#include <torch/library.h>

#include "tandem/core/error.h"

namespace tandem::nn {
namespace {

// A key that LibTorch uses in tests only, and above all others that are in use here: what is noted is what the program
// calls. As rng's, it costs nothing on threads that have not switched it on.
constexpr c10::DispatchKey kWatchKey = c10::DispatchKey::TESTING_ONLY_GenericMode;

thread_local WriteWatch* innermost_watch = nullptr;

void set_watch(WriteWatch* watch) {
  innermost_watch = watch;
  c10::impl::tls_set_dispatch_key_included(kWatchKey, watch != nullptr);
}

// Its bytes, without a part in its tensors' graphs and versions.
at::Tensor bytes_of(const c10::Storage& storage) {
  return at::empty({0}, at::TensorOptions().dtype(at::kByte).device(storage.device()))
      .set_(storage, 0, {static_cast<std::int64_t>(storage.nbytes())});
}

// While alive, operators are nobody's but ours.
class Unnoticed {
 private:
  const at::AutoDispatchBelowADInplaceOrView below_autograd_;
  const c10::impl::ExcludeDispatchKeyGuard unwatched_{kWatchKey};
};

// Batch norms write to these without saying so; those in evaluation do not.
bool is_running_statistic(const c10::Argument& argument) {
  return argument.name() == "running_mean" || argument.name() == "running_var";
}

bool is_written(const c10::Argument& argument) { return argument.alias_info() && argument.alias_info()->isWrite(); }

bool uses_running_statistics(const c10::FunctionSchema& schema, at::ArrayRef<c10::IValue> arguments) {
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& name = schema.arguments()[i].name();
    if ((name == "training" || name == "train") && arguments[i].isBool()) return !arguments[i].toBool();
  }
  return false;
}

void note_writes(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  if (innermost_watch) {
    const auto& schema = op.schema();
    const auto arguments = torch::jit::last(*stack, schema.arguments().size());
    for (std::size_t i = 0; i < arguments.size(); ++i) {
      const c10::Argument& argument = schema.arguments()[i];
      const bool statistic = !is_written(argument) && is_running_statistic(argument);
      if (!is_written(argument) && !(statistic && !uses_running_statistics(schema, arguments))) continue;
      const auto note = [&](const at::Tensor& tensor) {
        innermost_watch->about_to_write(tensor, schema.name().c_str());
      };
      if (arguments[i].isTensor()) note(arguments[i].toTensor());
      if (arguments[i].isTensorList())
        for (const at::Tensor& tensor : arguments[i].toTensorVector()) note(tensor);
    }
  }
  op.redispatchBoxed(keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, kWatchKey), stack);
}

void note_made(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  op.redispatchBoxed(keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, kWatchKey), stack);
  if (innermost_watch && stack->back().isTensor()) innermost_watch->made(stack->back().toTensor());
}

// What others are made with, and then written to: a mask of dropout's, say.
constexpr std::array<std::string_view, 4> kMakers{"aten::empty", "aten::empty_like", "aten::empty_strided",
                                                  "aten::clone"};

class WatchRegistration {
 public:
  WatchRegistration() : library_(torch::Library::IMPL, "_", kWatchKey, __FILE__, __LINE__) {
    library_.fallback(torch::CppFunction::makeFallthrough());
    auto& dispatcher = c10::Dispatcher::singleton();
    for (const c10::OperatorName& name : dispatcher.getAllOpNames()) {
      const auto op = dispatcher.findSchema(name);
      // Names of dimensions cannot be put on LibTorch's stack.
      if (!op || name.name == "aten::rename_" || name.overload_name.find("ame") != std::string::npos) continue;
      const auto& arguments = op->schema().arguments();
      const bool writes = std::any_of(arguments.begin(), arguments.end(), [](const c10::Argument& argument) {
        return is_written(argument) || is_running_statistic(argument);
      });
      const bool makes = std::find(kMakers.begin(), kMakers.end(), name.name) != kMakers.end();
      if (writes)
        library_of(name).impl(c10::toString(name).c_str(), torch::CppFunction::makeFromBoxedFunction<&note_writes>());
      else if (makes)
        library_of(name).impl(c10::toString(name).c_str(), torch::CppFunction::makeFromBoxedFunction<&note_made>());
    }
  }

 private:
  torch::Library& library_of(const c10::OperatorName& name) {
    const std::string space(name.getNamespace().value_or("aten"));
    auto& library = libraries_[space];
    if (!library)
      library = std::make_unique<torch::Library>(torch::Library::IMPL, space, kWatchKey, __FILE__, __LINE__);
    return *library;
  }

  torch::Library library_;
  std::map<std::string, std::unique_ptr<torch::Library>> libraries_;
};

bool is_older(const at::TensorBase& tensor, std::uint64_t number) {
  const auto& node = tensor.grad_fn();
  return node && node->sequence_nr() < number;
}

}  // namespace

bool WrittenTensors::has(const at::Tensor& tensor) const {
  return tensor.has_storage() && all_.contains(tensor.storage().unsafeGetStorageImpl());
}

WrittenTensors::AsBefore::AsBefore(const WrittenTensors& written) {
  const Unnoticed unnoticed;
  for (const auto& [impl, one] : written.all_) {
    auto alive = one.storage.lock();
    if (!alive) continue;
    Now& now = now_.emplace_back(Now{c10::Storage(std::move(alive)), {}, {}});
    at::Tensor bytes = bytes_of(now.storage);
    now.bytes = bytes.clone();
    bytes.copy_(one.bytes);
    for (const auto& version : one.versions) now.versions.emplace_back(version, version.current_version());
  }
}

WrittenTensors::AsBefore::~AsBefore() {
  const Unnoticed unnoticed;
  for (Now& now : now_) {
    bytes_of(now.storage).copy_(now.bytes);
    for (auto& [version, number] : now.versions) version.set_version(number);
  }
}

WriteWatch::WriteWatch(WrittenTensors& written)
    : written_(written), around_(innermost_watch), began_(at::sequence_number::peek()) {
  static const WatchRegistration registration;
  set_watch(this);
}

WriteWatch::~WriteWatch() {
  std::erase_if(written_.all_, [](const auto& one) { return one.second.storage.expired(); });
  set_watch(around_);
}

WriteWatch::Pause::Pause() : paused_(innermost_watch) { set_watch(nullptr); }
WriteWatch::Pause::~Pause() { set_watch(paused_); }

void WriteWatch::made(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.has_storage()) return;
  for (WriteWatch* watch = this; watch; watch = watch->around_)
    watch->made_.insert_or_assign(tensor.storage().unsafeGetStorageImpl(), tensor.storage().getWeakStorageImpl());
}

void WriteWatch::about_to_write(const at::Tensor& tensor, const char* operation) {
  if (!tensor.defined() || !tensor.has_storage() || !tensor.storage()) return;
  for (WriteWatch* watch = this; watch; watch = watch->around_) {
    if (is_older(tensor, watch->began_) || (tensor.is_view() && is_older(tensor._base(), watch->began_)))
      throw ConfigError(std::string("the function that nn::checkpoint was given writes (") + operation +
                        ") to a tensor that was computed before it, and would write to it again in the backward pass; "
                        "let it write to a copy, or compute out of place");
    if (!tensor.grad_fn()) watch->note(tensor);
  }
}

void WriteWatch::note(const at::Tensor& tensor) {
  const c10::StorageImpl* const impl = tensor.storage().unsafeGetStorageImpl();
  if (made_.contains(impl)) return;
  const auto version = tensor.is_inference() ? c10::VariableVersion() : tensor.unsafeGetTensorImpl()->version_counter();
  if (const auto found = written_.all_.find(impl); found != written_.all_.end()) {
    if (version.enabled()) found->second.versions.push_back(version);
    return;
  }
  // Memory of the part's own that has gone by now.
  std::erase_if(written_.all_, [](const auto& one) { return one.second.storage.expired(); });
  const Unnoticed unnoticed;
  auto& written = written_.all_
                      .emplace(impl,
                               WrittenTensors::Written{
                                   tensor.storage().getWeakStorageImpl(), bytes_of(tensor.storage()).clone(), {}})
                      .first->second;
  if (version.enabled()) written.versions.push_back(version);
}

}  // namespace tandem::nn
