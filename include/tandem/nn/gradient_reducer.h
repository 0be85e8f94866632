#pragma once

#include <string>
#include <vector>

#include "tandem/nn/gradient_bucket.h"

namespace tandem::comm {
class RankGroup;
}

namespace tandem::nn {

template <class Impl>
class Model;

/// What a program may ask of the reduction of one model's gradients, which src/nn/model_reducer_*.cpp make:
/// Model::reducer. Stays valid for as long as the
/// model, also when its launch has ended.
class GradientReducer {
 public:
  virtual ~GradientReducer() = default;
  GradientReducer(const GradientReducer&) = delete;
  GradientReducer& operator=(const GradientReducer&) = delete;

  /// Has buckets reduced by `hook`; an empty one: by their mean. All ranks set theirs between the same two reductions.
  /// What a pass adds to a gradient whose bucket has started (the parameter was reached more often than in the last
  /// pass) and sparse gradients are averaged all the same. Not collective.
  virtual void set_communication_hook(CommunicationHook hook) = 0;

  /// Whether a hook is set.
  virtual bool has_communication_hook() const = 0;

  /// Names of the parameters that require a gradient and had none on any rank in the last reduction of this model. Not
  /// collective.
  virtual std::vector<std::string> unused_parameters() const = 0;

 protected:
  GradientReducer() = default;

 private:
  template <class Impl>
  friend class Model;

  // The model was called, in mixed precision where the launch asks for it.
  virtual void note_call() = 0;
};

}  // namespace tandem::nn
