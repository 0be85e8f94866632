#pragma once

#include <concepts>
#include <functional>
#include <variant>

#include <torch/optim/schedulers/lr_scheduler.h>
#include <torch/optim/schedulers/reduce_on_plateau_scheduler.h>

#include "tandem/optim/reduce_lr_on_plateau.h"
#include "tandem/optim/scheduler.h"

namespace tandem::optim {

/// A schedule by the number of updates, ours or LibTorch's.
template <class T>
concept UpdateScheduler = std::derived_from<T, LRScheduler> || std::derived_from<T, torch::optim::LRScheduler>;

/// A schedule by a metric, ours or LibTorch's (which takes it as a float).
template <class T>
concept MetricScheduler =
    std::derived_from<T, ReduceLROnPlateau> || std::derived_from<T, torch::optim::ReduceLROnPlateauScheduler>;

namespace detail {

/// What AcceleratedScheduler needs of a scheduler, whatever its class. The scheduler outlives it.
struct SchedulerCalls {
  using Step = std::function<void()>;              ///< of an UpdateScheduler
  using MetricStep = std::function<void(double)>;  ///< of a MetricScheduler

  /// Of a scheduler by the number of updates.
  template <UpdateScheduler Inner>
  explicit SchedulerCalls(Inner& inner) : step(Step([&inner] { inner.step(); })), ours(ours_of(inner)) {}

  /// Of one by a metric.
  template <MetricScheduler Inner>
  explicit SchedulerCalls(Inner& inner)
      : step(MetricStep([&inner](double metric) { inner.step(metric); })), ours(ours_of(inner)) {}

  std::variant<Step, MetricStep> step;  ///< steps it once
  Scheduler* ours;                      ///< the scheduler itself; null when it is LibTorch's

 private:
  template <class Inner>
  static Scheduler* ours_of(Inner& inner) {
    if constexpr (std::derived_from<Inner, Scheduler>)
      return &inner;
    else
      return nullptr;
  }
};

}  // namespace detail

}  // namespace tandem::optim
