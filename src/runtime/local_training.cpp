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

// Weights that are alike would part in the next steps, had each rank states of its own.
void take_over_states_of_main(RankContext& context, const TrainingParts& parts) {
  for (auto& optimizer : parts.alive_optimizers()) {
    c10::IValue state;
    try {
      state = state_of(optimizer, context.rank == 0);
    } catch (const ConfigError& error) {  // no reason to lose the training that is done
      if (context.config().on_warning)
        context.config().on_warning(std::string(error.what()) +
                                    ". Each rank goes on after local_sgd with its own, and with other weights");
    }
    take_over(optimizer, state, context, 0);
  }
}

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
    take_over_states_of_main(context, parts);
  }
  updates.end_apart();
}

}  // namespace tandem
