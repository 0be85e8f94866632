#include "tandem/runtime/prepared.h"

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

std::vector<optim::AcceleratedOptimizer> Prepared::alive_optimizers() const { return alive(optimizers); }

std::vector<optim::AcceleratedScheduler> Prepared::alive_schedulers() const { return alive(schedulers); }

std::vector<std::shared_ptr<data::LoaderBase>> Prepared::alive_loaders() const {
  std::vector<std::shared_ptr<data::LoaderBase>> alive;
  for (const auto& observed : loaders)
    if (auto loader = observed.lock()) alive.push_back(std::move(loader));
  return alive;
}

}  // namespace tandem
