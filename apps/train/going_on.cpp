#include "going_on.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "batches.h"
#include "printable.h"
#include "resumed_flags.h"
#include "stored_description.h"
#include "tandem/core/error.h"
#include "tandem/io/checkpoint_series.h"

namespace train {
namespace {

// The names of `some` that are not in `others`.
FewNames names_beyond(const std::vector<std::string>& some, const std::vector<std::string>& others) {
  FewNames names;
  for (const std::string& name : some)
    if (std::find(others.begin(), others.end(), name) == others.end()) names.add(name);
  return names;
}

// Otherwise labels would mean other classes than before, and what was trained on could be judged by.
void check_is_its_data(const TrainingState& checkpoint, const Inputs& inputs) {
  const auto before = checkpoint.classes, now = inputs.task->classes();
  if (!before.empty() && before != now)
    throw tandem::ConfigError("--resume: the data has other classes than the checkpoint: " + difference(before, now) +
                              "; begin anew, with --init-weights if you like");
  if (!checkpoint.data.empty() && checkpoint.data != inputs.data)
    throw tandem::ConfigError("--resume: the data is not that of the checkpoint, which had " + checkpoint.data +
                              "; now there are " + inputs.data +
                              ". What was trained on would be judged by: begin anew, with --init-weights if you like, "
                              "or put the data back");
}

// An epoch's place is counted in global batches.
void check_is_its_batch(const TrainingState& checkpoint, const Options& options) {
  const std::int64_t before = checkpoint.global_batch, now = options.global_batch();
  if (before == 0 || before == now) return;
  const int ranks = options.launch.data_loader.split_batches ? 1 : options.logical_ranks();
  throw tandem::ConfigError(batch_flag(options) + ": a step of all ranks has " + counted(now, "sample") +
                            ", those of the checkpoint have " + std::to_string(before) + "; use " +
                            (before % ranks == 0 ? "--batch-size " + std::to_string(before / ranks) + " or " : "") +
                            "--global-batch-size " + std::to_string(before));
}

}  // namespace

std::string difference(const std::vector<std::string>& before, const std::vector<std::string>& now) {
  const FewNames gone = names_beyond(before, now), added = names_beyond(now, before);
  if (gone.count() == 0 && added.count() == 0) return "they are in another order";
  return "gone are " + gone.text() + ", new are " + added.text();
}

// Its path; empty: the newest that is not damaged; nothing: training begins anew.
static std::optional<std::string> checkpoint_to_resume(const Options& options) {
  const std::string& directory = options.launch.checkpoints.directory;
  if (options.resume == "auto") {
    if (tandem::io::list_checkpoints(directory).empty()) return std::nullopt;
    return "";
  }
  std::error_code error;
  if (!std::filesystem::is_directory(options.resume, error))
    throw tandem::ConfigError("--resume '" + options.resume + "' is no directory; name a checkpoint, or auto");
  check_is_one_checkpoint("--resume", options.resume);
  return options.resume;
}

static FoundCheckpoint find_here(const Options& options) {
  return {checkpoint_to_resume(options), state_of_checkpoint(options.resume, options.launch.checkpoints.directory)};
}

FoundCheckpoint find_checkpoint(const Options& options) {
  if (options.resume.empty()) return {};
  if (!options.launch.nodes || options.launch.nodes->nodes == 1) return find_here(options);
  FoundCheckpoint found;
  // A launch of its own: what the next one is like depends on what is found.
  tandem::launch({.cpu = 1, .nodes = options.launch.nodes}, [&](tandem::Accelerator& accelerator) {
    std::pair<std::optional<std::string>, std::optional<c10::IValue>> told;
    if (accelerator.is_main()) {
      found = find_here(options);
      told.first = found.path;
      if (found.state) told.second = found.state->state_dict();
    }
    told = accelerator.broadcast_object(told);
    found.path = told.first;
    if (told.second) found.state.emplace().load_state_dict(*told.second);
  });
  return found;
}

void check_is_there(const DataOptions& data) {
  const std::pair<const char*, const std::string*> all[] = {
      {"data-dir", &data.dir}, {"data-file", &data.file}, {"val-file", &data.val_file}};
  for (const auto& [flag, path] : all) {
    std::error_code error;
    if (path->empty() || !data.of_checkpoint.contains(flag) || std::filesystem::exists(*path, error)) continue;
    throw tandem::ConfigError("--resume: the checkpoint was made with --" + std::string(flag) + " " + *path +
                              ", which is not there" + (path->starts_with('/') ? "" : ", seen from here") +
                              "; say with --" + flag + " where it is now");
  }
}

void check_is_its_own(const TrainingState& checkpoint, const Options& options, const Inputs& inputs) {
  check_is_its_data(checkpoint, inputs);
  check_is_its_batch(checkpoint, options);
}

std::string earlier_checkpoints(const Options& options) {
  const std::string& directory = options.launch.checkpoints.directory;
  const auto all = directory.empty() ? std::vector<std::string>() : tandem::io::list_checkpoints(directory);
  if (all.empty()) return {};
  const std::string has = directory + " has " + counted(std::ssize(all), "checkpoint") + " of an earlier training";
  if (const auto limit = options.launch.checkpoints.total_limit)
    throw tandem::ConfigError("--total-limit " + std::to_string(*limit) + ": " + has +
                              ", which would be removed; go on with it by --resume auto, name another "
                              "--checkpoint-dir, or remove it");
  return has + ", up to " + all.back() + ", from which --resume auto would go on; those of this one follow";
}

}  // namespace train
