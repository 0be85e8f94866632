// What LibTorch's operators were given and gave on one thread, to find where two trainings part.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/record_function.h>
#include <torch/nn/module.h>

namespace tandem {

/// A hash of type, shape and values of a tensor, to the bit; of no tensor too.
std::uint64_t hash_of_tensor(const at::Tensor& tensor);

/// One call of an operator by the program, or of a function of backward. What operators call themselves is theirs.
struct TracedCall {
  struct Input {
    int argument = 1;  ///< from 1
    std::uint64_t hash = 0;
    std::string made_by;  ///< function whose backward is this; empty: unknown
  };

  std::string name;           ///< such as "aten::addmm"
  std::string place;          ///< such as "of layer 0 (torch::nn::LinearImpl)"
  std::vector<Input> inputs;  ///< tensors and numbers, in their order
  std::uint64_t outputs = 0;  ///< of all of them
};

/// While one is alive, the calling thread's calls are recorded, where `begin_forward` or `begin_backward` has said so.
/// To be destroyed on the thread.
class OperatorTrace {
 public:
  OperatorTrace();
  ~OperatorTrace();
  OperatorTrace(const OperatorTrace&) = delete;
  OperatorTrace& operator=(const OperatorTrace&) = delete;

  /// Layers are named after parameters of these, which operators read.
  void name_layers(const std::vector<std::shared_ptr<torch::nn::Module>>& models);

  void begin_forward();   ///< records from here on what is called
  void begin_backward();  ///< the same, but only within functions of backward; not what hooks do with gradients
  void pause();           ///< records nothing until the next one

  /// The calls since the last time, in the order in which they ended.
  std::vector<TracedCall> take();

 private:
  enum class Phase { paused, forward, backward };
  struct Call;
  class Look;

  // Forward, or a function of backward that runs.
  struct Function {
    std::string place;
    // What is done with a gradient that is there is the reducer's, and depends on the number of ranks.
    bool is_recorded = false;
    int depth = 0;            // of operators in operators
    std::string outermost{};  // place of the outermost of them
  };

  static std::unique_ptr<at::ObserverContext> started(const at::RecordFunction& function);
  static void ended(const at::RecordFunction& function, at::ObserverContext* context);
  std::unique_ptr<at::ObserverContext> start(const at::RecordFunction& function);
  void end(const at::RecordFunction& function, Call& call);
  std::string place_of(const at::RecordFunction& function);

  at::CallbackHandle handle_;
  Phase phase_ = Phase::paused;
  bool looks_ = false;                                    // what is called is not the program's
  std::unordered_map<const void*, std::string> layers_;   // by a parameter's memory
  std::string last_layer_;                                // that an operator has read
  std::unordered_map<std::int64_t, std::string> places_;  // of forward's calls, by the number that backward has of them
  Function within_;
  std::vector<TracedCall> calls_;
};

}  // namespace tandem
