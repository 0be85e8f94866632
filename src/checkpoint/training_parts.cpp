#include "checkpoint/training_parts.h"

#include <algorithm>

namespace tandem {
namespace {

template <class Wrapper>
std::vector<Wrapper> alive(const std::vector<optim::Observer<Wrapper>>& observers) {
  std::vector<Wrapper> wrappers;
  for (const auto& observer : observers)
    if (auto wrapper = observer.lock()) wrappers.push_back(*wrapper);
  return wrappers;
}

}  // namespace

std::vector<optim::AcceleratedOptimizer> TrainingParts::alive_optimizers() const { return alive(optimizers); }

std::vector<optim::AcceleratedScheduler> TrainingParts::alive_schedulers() const { return alive(schedulers); }

std::vector<std::shared_ptr<data::LoaderBase>> TrainingParts::alive_loaders() const {
  std::vector<std::shared_ptr<data::LoaderBase>> positions;
  for (const auto& loader : loaders)
    if (auto position = loader.lock()) positions.push_back(std::move(position));
  return positions;
}

void TrainingParts::begin_window() const {
  for (const auto& reducer : reducers) reducer->begin_window();
}

void TrainingParts::scale_window(double factor) const {
  for (const auto& reducer : reducers) reducer->scale_window(factor);
}

bool TrainingParts::has_local_gradients() const {
  return std::any_of(reducers.begin(), reducers.end(),
                     [](const auto& reducer) { return reducer->has_local_gradients(); });
}

}  // namespace tandem
