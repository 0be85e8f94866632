// Accelerator::profile, and what it returns.
#include "tandem/runtime/profile.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "comm/agree.h"
#include "io/output_file.h"
#include "runtime/profile_session.h"
#include "runtime/rank_training.h"
#include "tandem/core/error.h"
#include "tandem/io/safetensors.h"
#include "tandem/runtime/accelerator.h"

namespace tandem {
namespace {

void check(const ProfileOptions& options) {
  const std::string steps = std::to_string(options.first_step) + " to " + std::to_string(options.last_step);
  if (options.first_step < 1) throw ConfigError("profile of steps " + steps + ": the first one is 1");
  if (options.last_step < options.first_step)
    throw ConfigError("profile of steps " + steps + ": the last one is before the first");
  if (options.directory.empty()) throw ConfigError("profile: no directory is given for the trace");
}

// The file that the trace goes to, known to be writable.
std::string make_path(const std::string& directory) {
  std::error_code error;
  std::filesystem::create_directories(io::follow_links(directory), error);
  if (error) throw ConfigError("profile: the directory '" + directory + "' cannot be made: " + error.message());
  const std::string path = directory + "/trace.json";
  io::check_writable(path);
  return path;
}

std::string line_of(std::size_t rank, const RankProfile& profile) {
  const double whole = profile.seconds > 0 ? profile.seconds : 1;
  const auto share = [&](double seconds) { return 100 * seconds / whole; };
  char line[160];
  std::snprintf(line, sizeof line, "%4zu %6lld %9.2f %9.1f %% %6.1f %% %7.1f %% %12.1f %% %8.1f %% %5.1f %%\n", rank,
                static_cast<long long>(profile.steps),
                1e3 * profile.seconds / static_cast<double>(std::max<std::int64_t>(profile.steps, 1)),
                share(profile.data_wait), share(profile.forward), share(profile.backward), share(profile.communication),
                share(profile.optimizer), share(profile.other));
  return line;
}

}  // namespace

std::string Profile::table() const {
  std::string text = "rank  steps   ms/step   data wait  forward  backward  communication  optimizer   other\n";
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) text += line_of(rank, ranks[rank]);
  return text;
}

void prepare_profiler() {
  trace::TorchProfiler profiler;
  profiler.start(false);
  profiler.stop();
}

Profile Accelerator::profile(const ProfileOptions& options, const std::function<void()>& body) {
  std::shared_ptr<ProfileSession> session;
  std::string path;
  comm::check_together(*context_.group, rank(), {.operation = "broadcast_object"}, [&] {
    check(options);
    if (context_.group->place().nodes > 1)
      throw ConfigError("profile with several machines; profile a training of one process");
    if (!is_main()) return;
    path = make_path(options.directory);
    session = std::make_shared<ProfileSession>(world_size(), !device().is_cpu());
  });
  session = broadcast_object(session);
  {
    RankProfiler profiler(session, rank(), options);
    const auto forget = [this](RankProfiler*) { training_.profiler = nullptr; };
    const std::unique_ptr<RankProfiler, decltype(forget)> current(training_.profiler = &profiler, forget);
    body();
  }
  if (!is_main()) session.reset();  // the last to hold it lets the process have another
  wait_for_everyone();              // all have left
  Profile profile;
  comm::check_together(*context_.group, rank(), {.operation = "broadcast_object"}, [&] {
    if (is_main()) profile = session->finish(path, options.first_step);
  });
  return broadcast_object(profile);
}

}  // namespace tandem
