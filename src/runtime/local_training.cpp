#include "runtime/local_training.h"

#include <string>

#include "comm/agree.h"
#include "tandem/core/error.h"

namespace tandem {
namespace {

// While alive, ranks train on their own.
class AloneScope {
 public:
  AloneScope(nn::AccumulationWindow& window, DividedUpdates& updates) : window_(window), updates_(updates) {
    updates_.begin_apart();
    window_.train_alone(true);
  }
  ~AloneScope() {
    window_.train_alone(false);
    updates_.stay_apart();  // when it has not ended well
  }
  AloneScope(const AloneScope&) = delete;
  AloneScope& operator=(const AloneScope&) = delete;

 private:
  nn::AccumulationWindow& window_;
  DividedUpdates& updates_;
};

}  // namespace

void train_locally(RankContext& context, TrainingParts& parts, DividedUpdates& updates, const Join& join, int steps,
                   const std::function<void(nn::LocalSgd&)>& body) {
  if (context.config().exact)
    throw ConfigError("local_sgd in exact mode: ranks would train on their own, and how many there are would count");
  if (context.window.trains_alone()) throw ConfigError("local_sgd within local_sgd");
  if (join.active()) throw ConfigError("local_sgd within join_uneven_inputs, whose ranks take different steps");
  const std::string call = "local_sgd with " + std::to_string(steps) + " steps between averages";
  comm::agree(*context.group, context.rank, {.operation = "local_sgd"},
              {.signature = static_cast<std::uint64_t>(steps),
               .refusal = comm::refusal_of([&] {
                 if (steps < 1) throw ConfigError(call + "; use 1 or more");
               }),
               .describe = [&] { return call; }});
  {
    const AloneScope alone(context.window, updates);
    const auto average = [&parts] {
      for (const auto& reducer : parts.reducers) reducer->average_weights();
    };
    nn::LocalSgd local(
        steps, [&context] { return context.window.closes_window(); }, average);
    body(local);
    average();
  }
  updates.end_apart();
}

}  // namespace tandem
