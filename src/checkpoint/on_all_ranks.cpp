#include "checkpoint/on_all_ranks.h"

#include <string>

#include "tandem/comm/detail/objects.h"
#include "tandem/core/error.h"
#include "tandem/trace/range.h"

namespace tandem {

namespace {

struct Failure {
  enum class Kind { none, of_configuration, other } kind = Kind::none;
  std::string text{};
};

std::string to_bytes(const Failure& failure) { return comm::pack(failure.kind, failure.text); }

void from_bytes(std::string_view bytes, Failure& failure) { comm::unpack(bytes, failure.kind, failure.text); }

}  // namespace

void check_on_all(comm::RankGroup& group, int rank, const std::function<void()>& check) {
  Failure mine;
  try {
    check();
  } catch (const Cancelled&) {
    throw;
  } catch (const ConfigError& error) {
    mine = {Failure::Kind::of_configuration, error.what()};
  } catch (const std::exception& error) {
    mine = {Failure::Kind::other, error.what()};
  } catch (...) {
    mine = {Failure::Kind::other, "an exception of an unknown type"};
  }
  for (const Failure& failure : comm::detail::gather_objects(group, rank, mine)) {
    if (failure.kind == Failure::Kind::of_configuration) throw ConfigError(failure.text);
    if (failure.kind == Failure::Kind::other) throw CheckpointError(failure.text);
  }
}

void on_main_for_all(comm::RankGroup& group, int rank, const std::function<void()>& work) {
  const trace::Range range(trace::Event::checkpoint);
  check_on_all(group, rank, [&] {
    if (rank == 0) work();
  });
}

}  // namespace tandem
