#include "resumed_flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <initializer_list>
#include <map>
#include <set>
#include <variant>

#include "tandem/core/error.h"
#include "tandem/io/checkpoint_series.h"
#include "tandem/io/pickle_file.h"
#include "training_state.h"

namespace train {
namespace {

using tandem::io::Config;
using tandem::io::ConfigValue;

std::map<std::string, OnResume> make_decisions() {
  using enum OnResume;
  std::map<std::string, OnResume> all;
  const auto add = [&all](OnResume decision, std::initializer_list<const char*> flags) {
    for (const char* flag : flags) all.emplace(flag, decision);
  };
  // Another one would be another training: other parameters, another state, another order of samples.
  add(kept, {"model", "heads", "optimizer", "seed", "exact", "logical-ranks", "freeze", "lr-scale", "decay-norms",
             "ema", "val-split", "skip-bad-images", "balance-classes", "tokens", "vocabulary"});
  // What is trained, and how. Weights of other sizes are refused when they are loaded.
  add(inherited, {"hidden", "block-size", "layers", "width", "dropout"});
  add(inherited, {"lr", "momentum", "weight-decay", "scheduler", "warmup-steps", "warmup-epochs", "mixed-precision"});
  add(inherited, {"gradient-accumulation-steps", "clip-grad-norm"});
  add(inherited, {"image-size", "channels", "augment"});
  add(inherited, {"normalize", "limit-train-samples", "no-shuffle", "drop-last", "no-even-batches"});
  add(inherited, {"dispatch-batches", "label-smoothing", "save-best", "early-stop"});
  // Where the data is, which may have moved. Without them it would be other data.
  add(inherited, {"data-dir", "data-file", "val-file"});
  // Another global batch is refused when the loader's place is loaded.
  add(used, {"batch-size", "global-batch-size", "split-batches", "workers"});
  // How long.
  add(used, {"epochs", "max-steps", "check-exact", "eval-every"});
  // On what.
  add(used, {"gpus", "devices", "cpu", "threads-per-rank", "transport", "checkpoint-activations", "cuda-graphs", "tf32",
             "expandable-segments", "nodes", "node", "head"});
  // What is read and written. --init-weights is refused with --resume.
  add(used, {"config", "init-weights", "weights-prefix", "save-weights", "sample-bytes", "log-json", "checkpoint-dir",
             "save-every"});
  add(used, {"total-limit", "resume", "profile", "profile-steps", "nvtx-steps", "log-with", "project-dir", "report"});
  add(used, {"log-every", "quiet", "no-progress"});
  return all;
}

const std::map<std::string, OnResume>& decisions() {
  static const std::map<std::string, OnResume> all = make_decisions();
  return all;
}

std::string text_of(const ConfigValue& value) {
  if (const auto* flag = std::get_if<bool>(&value)) return *flag ? "true" : "false";
  if (const auto* number = std::get_if<std::int64_t>(&value)) return std::to_string(*number);
  if (const auto* text = std::get_if<std::string>(&value)) return *text;
  char digits[32];
  return {digits, std::to_chars(digits, digits + sizeof digits, std::get<double>(value)).ptr};
}

const ConfigValue* find(const Config& flags, const std::string& name) {
  const auto found = std::find_if(flags.begin(), flags.end(), [&](const auto& flag) { return flag.first == name; });
  return found == flags.end() ? nullptr : &found->second;
}

// Empty: it has none.
std::string text_in(const Config& flags, const std::string& name) {
  const ConfigValue* value = find(flags, name);
  return value ? text_of(*value) : std::string();
}

bool same(const std::string& a, const std::string& b) {
  if (a == b) return true;
  const auto number = [](const std::string& text, double& value) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc() && end == text.data() + text.size() && !text.empty();
  };
  double x = 0, y = 0;
  return number(a, x) && number(b, y) && x == y;
}

// A flag that is not there has its default, which is none or false.
bool same_flag(const std::string& a, const std::string& b) {
  const auto is_off = [](const std::string& text) { return text.empty() || text == "false"; };
  return (is_off(a) && is_off(b)) || same(a, b);
}

std::string shown(const std::string& value) { return value.empty() ? "not given" : value; }

}  // namespace

std::optional<OnResume> on_resume(const std::string& flag) {
  const auto found = decisions().find(flag);
  return found == decisions().end() ? std::nullopt : std::optional(found->second);
}

std::optional<TrainingState> state_of_checkpoint(const std::string& resume, const std::string& directory) {
  std::vector<std::string> paths{resume};
  if (resume == "auto") paths = tandem::io::list_checkpoints(directory);
  for (; !paths.empty(); paths.pop_back()) {
    try {
      TrainingState state;
      state.load_state_dict(tandem::io::read_pickle(paths.back() + "/custom_checkpoint_0.pkl"));
      return state;
    } catch (const tandem::CheckpointError&) {  // which load_state says, or it takes the one before as well
    }
  }
  return std::nullopt;
}

namespace {

// With what it does not say: it is of a version without that flag, or it was not given.
Config with_later_flags(Config checkpoint) {
  const auto add = [&](const std::string& name, const ConfigValue& before) {
    if (!find(checkpoint, name)) checkpoint.emplace_back(name, before);
  };
  const bool says_flags = !checkpoint.empty();
  add("decay-norms", true);
  add("freeze", std::string());
  add("lr-scale", std::string());
  if (!says_flags) return checkpoint;
  if (text_in(checkpoint, "model").starts_with("gpt")) add("tokens", std::string("bytes"));
  for (const auto& [name, decision] : decisions())
    if (decision == OnResume::kept) add(name, std::string());
  return checkpoint;
}

}  // namespace

namespace {

bool is_given(const CLI::App& app, const std::string& name) {
  const CLI::Option* const option = app.get_option_no_throw("--" + name);
  return option && option->count() > 0;
}

// Pictures do not follow a table, nor a table pictures.
void check_kind_of_data(const CLI::App& app, const Config& checkpoint) {
  for (const auto& [flag, other] : {std::pair("data-dir", "data-file"), std::pair("data-file", "data-dir")})
    if (const std::string before = text_in(checkpoint, other); is_given(app, flag) && !before.empty())
      throw tandem::ConfigError("--" + std::string(flag) + " cannot go on from a checkpoint that was made with --" +
                                other + " " + before + "; begin anew, with --init-weights if you like");
}

}  // namespace

std::vector<std::string> inherited_flags(const CLI::App& app, const Config& of_checkpoint) {
  const Config checkpoint = with_later_flags(of_checkpoint);
  check_kind_of_data(app, checkpoint);
  std::vector<std::string> flags;
  for (const auto& [name, value] : checkpoint) {
    const auto decision = on_resume(name);
    const CLI::Option* const option = app.get_option_no_throw("--" + name);
    if (!option || (decision != OnResume::inherited && decision != OnResume::kept)) continue;
    if (option->count() == 0) {
      if (!text_of(value).empty()) flags.push_back("--" + name + "=" + text_of(value));
    } else if (decision == OnResume::kept) {
      const std::string given = CLI::detail::join(option->reduced_results(), ",");
      if (!same_flag(given, text_of(value)))
        throw tandem::ConfigError("--" + name + " " + given + " cannot go on from a checkpoint that was made with" +
                                  (text_of(value).empty() ? "out it" : " " + text_of(value)) +
                                  "; leave it out, or begin anew without --resume");
    }
  }
  return flags;
}

Differences compare_flags(const Config& flags, const Config& of_checkpoint) {
  static const std::set<std::string> of_optimizer{"lr",        "momentum",     "weight-decay",
                                                  "scheduler", "warmup-steps", "warmup-epochs"};
  Differences differences;
  if (of_checkpoint.empty()) {
    differences.lines = {
        "the checkpoint is of an older version, which does not say its flags: learning rate, momentum and "
        "weight decay are those that it was made with"};
    return differences;
  }
  const Config checkpoint = with_later_flags(of_checkpoint);
  for (const auto& [name, decision] : decisions()) {
    if (decision == OnResume::used) continue;
    const std::string now = text_in(flags, name), before = text_in(checkpoint, name);
    if (same_flag(now, before)) continue;
    if (name == "scheduler" && (now == "plateau" || before == "plateau"))
      throw tandem::ConfigError("--scheduler " + now + " cannot go on from a checkpoint that was made with " + before +
                                ": plateau goes by epochs, the others by updates; begin anew without --resume");
    differences.in_optimizer = differences.in_optimizer || of_optimizer.contains(name);
    differences.lines.push_back("--" + name + " is " + shown(now) + " from here on; in the checkpoint it is " +
                                shown(before));
  }
  return differences;
}

}  // namespace train
