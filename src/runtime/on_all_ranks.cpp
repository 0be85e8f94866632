#include "runtime/on_all_ranks.h"

#include <string>

#include "tandem/core/error.h"
#include "tandem/trace/range.h"

namespace tandem {

void check_on_all(RankHandle& ranks, const std::function<void()>& check) {
  struct Failure {
    bool of_configuration = false;
    std::string text;  // empty: none
  } mine;
  try {
    check();
  } catch (const Cancelled&) {
    throw;
  } catch (const ConfigError& error) {
    mine = {true, error.what()};
  } catch (const std::exception& error) {
    mine.text = error.what();
  }
  for (const Failure& failure : ranks.gather_objects(mine)) {
    if (failure.of_configuration) throw ConfigError(failure.text);
    if (!failure.text.empty()) throw CheckpointError(failure.text);
  }
}

void on_main_for_all(RankHandle& ranks, const std::function<void()>& work) {
  const trace::Range range(trace::Event::checkpoint);
  check_on_all(ranks, [&] {
    if (ranks.is_main()) work();
  });
}

}  // namespace tandem
