#include "tandem/runtime/trainings.h"

#include <map>
#include <mutex>
#include <utility>

#include "tandem/core/error.h"

namespace tandem {
namespace {

struct Trainings {
  std::mutex mutex;
  std::map<std::string, const Training*> by_name;
};

// Never destroyed, nor is what another takes the place of: plug-ins register theirs before anything else, and their
// code may be gone, so that it cannot be called for an end.
Trainings& trainings() {
  static Trainings& trainings = *new Trainings;
  return trainings;
}

}  // namespace

void register_training(const std::string& name, Training training) {
  if (name.empty()) throw ConfigError("a training needs a name");
  if (!training) throw ConfigError("the training '" + name + "' has no function");
  const std::lock_guard lock(trainings().mutex);
  trainings().by_name[name] = new Training(std::move(training));
}

Training find_training(const std::string& name) {
  const std::lock_guard lock(trainings().mutex);
  const auto found = trainings().by_name.find(name);
  if (found != trainings().by_name.end()) return *found->second;
  std::string known;
  for (const auto& training : trainings().by_name) known += (known.empty() ? "" : ", ") + training.first;
  throw ConfigError("no training is known as '" + name + "'; known are: " + (known.empty() ? "none" : known));
}

}  // namespace tandem
