#include "nn/saved_tensor_hooks.h"

#include <atomic>
#include <mutex>
#include <utility>

#include <torch/csrc/autograd/engine.h>

namespace tandem::nn {
namespace {

namespace autograd = torch::autograd;

thread_local const SavedTensorHooksScope* innermost_hooks = nullptr;

// LibTorch asks its engine for the hooks of each tensor that is saved. This one answers for threads with hooks of ours,
// and passes everything else on to the engine that was there, which runs all passes as ever. (Python's comes with
// `import torch`, perhaps after us.) Never destroyed: LibTorch refers to it as long as the process lives.
class HookingEngine final : public autograd::Engine {
 public:
  // From here on LibTorch asks us.
  static void put_in_place() {
    static HookingEngine* const engine = new HookingEngine;
    static std::mutex mutex;
    if (&Engine::get_default_engine() == engine) return;
    const std::lock_guard lock(mutex);
    autograd::Engine& other = Engine::get_default_engine();
    if (&other == engine) return;
    engine->inner_ = &other;
    one_ = engine;
    autograd::set_default_engine_stub([]() -> autograd::Engine& { return *one_.load(); });
  }

  autograd::variable_list execute(const autograd::edge_list& roots, const autograd::variable_list& inputs,
                                  bool keep_graph, bool create_graph, bool accumulate_grad,
                                  const autograd::edge_list& outputs) override {
    return inner().execute(roots, inputs, keep_graph, create_graph, accumulate_grad, outputs);
  }

  c10::intrusive_ptr<at::ivalue::Future> execute_with_graph_task(const std::shared_ptr<autograd::GraphTask>& task,
                                                                 std::shared_ptr<autograd::Node> root,
                                                                 autograd::InputBuffer&& inputs) override {
    return inner().execute_with_graph_task(task, std::move(root), std::move(inputs));
  }

  std::unique_ptr<autograd::AnomalyMetadata> make_anomaly_metadata() override {
    return inner().make_anomaly_metadata();
  }

  std::unique_ptr<autograd::SavedVariableHooks> get_default_saved_variable_hooks() override {
    return innermost_hooks ? saved_tensor_hooks() : inner().get_default_saved_variable_hooks();
  }

 private:
  HookingEngine() = default;
  autograd::Engine& inner() const { return *inner_.load(); }

  static inline std::atomic<HookingEngine*> one_ = nullptr;
  std::atomic<autograd::Engine*> inner_ = nullptr;
};

}  // namespace

SavedTensorHooksScope::SavedTensorHooksScope(MakeSavedTensorHooks make)
    : make_(std::move(make)), around_(innermost_hooks) {
  HookingEngine::put_in_place();
  innermost_hooks = this;
}

SavedTensorHooksScope::~SavedTensorHooksScope() { innermost_hooks = around_; }

std::unique_ptr<torch::autograd::SavedVariableHooks> saved_tensor_hooks() {
  return innermost_hooks ? innermost_hooks->make_() : nullptr;
}

}  // namespace tandem::nn
