#include "judging.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <map>

#include "class_names.h"
#include "evaluation.h"
#include "io/model_weights.h"
#include "io/output_file.h"
#include "warn.h"
#include "weights.h"

namespace train {
namespace {

constexpr const char* kAveraged = "ema_";  // before the names of figures of averaged weights

// Of all others less is better.
bool more_is_better(std::string name) {
  if (name.starts_with(kAveraged)) name.erase(0, std::string(kAveraged).size());
  return name.find("accuracy") != std::string::npos || name == "r2";
}

double figure(const Verdict& verdict, const std::string& name) {
  return std::find_if(verdict.figures.begin(), verdict.figures.end(), [&](const auto& f) { return f.first == name; })
      ->second;
}

void add_averaged(Verdict& verdict, Verdict averaged) {
  verdict.sentence += "; averaged weights: " + averaged.sentence;
  for (auto& [name, value] : averaged.figures) verdict.figures.emplace_back(kAveraged + name, value);
}

void check_figure(const char* flag, const std::string& name, const Task& task, bool averages) {
  Verdict possible = not_judged(task);
  if (averages) add_averaged(possible, not_judged(task));
  std::string all;
  for (const auto& its : possible.figures) {
    if (its.first == name) return;
    all += (all.empty() ? "" : ", ") + its.first;
  }
  throw tandem::ConfigError(std::string(flag) + ": there is no figure '" + name + "' of this training; use one of " +
                            all);
}

// As verdicts have it.
std::string shown(const std::string& name, double value) {
  const bool is_share = name.find("accuracy") != std::string::npos;
  std::array<char, 32> text;
  std::snprintf(text.data(), text.size(), is_share ? "%.2f %%" : "%.6g", is_share ? 100 * value : value);
  return text.data();
}

// Gives what another training left at `path` a name of its own, "best-1" and so on, and returns that; empty: there is
// nothing. Throws CheckpointError.
std::string set_aside(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  const fs::path there = tandem::io::follow_links(path);
  if (!fs::is_directory(there, error) && !(fs::is_regular_file(there, error) && fs::file_size(there, error) > 0))
    return {};
  fs::path aside;
  int number = 0;
  do {
    aside = there.parent_path() / (there.stem().string() + "-" + std::to_string(++number) + there.extension().string());
  } while (fs::exists(fs::symlink_status(aside, error)));
  fs::rename(there, aside, error);
  if (error) fs::copy(there, aside, fs::copy_options::recursive, error);  // as of a mount point
  if (error)
    throw tandem::CheckpointError(path + ": is there already, and cannot be kept as " + aside.string() + ": " +
                                  error.message());
  return aside.string();
}

bool has_weights(const std::string& path, const tandem::io::NamedTensors& weights) {
  if (std::error_code error; !std::filesystem::is_regular_file(tandem::io::follow_links(path), error)) return false;
  try {
    const auto list = tandem::io::load_safetensors(path);
    const std::map<std::string, at::Tensor> stored(list.begin(), list.end());
    return stored.size() == weights.size() && std::all_of(weights.begin(), weights.end(), [&](const auto& named) {
             const auto found = stored.find(named.first);
             return found != stored.end() && found->second.scalar_type() == named.second.scalar_type() &&
                    at::equal(found->second, named.second.cpu());
           });
  } catch (const tandem::CheckpointError&) {
    return false;
  }
}

}  // namespace

std::string best_weights_path(const Options& options) {
  namespace fs = std::filesystem;
  if (options.save_best.empty()) return {};
  const fs::path beside = options.save_weights.empty() ? fs::path(options.launch.checkpoints.directory)
                                                       : fs::path(options.save_weights).parent_path();
  return (beside / "best.safetensors").string();
}

EarlyStop read_early_stop(const std::string& text) {
  const std::size_t colon = text.rfind(':');
  EarlyStop stop;
  const char* const end = text.data() + text.size();
  const auto [read, error] =
      std::from_chars(colon == std::string::npos ? end : text.data() + colon + 1, end, stop.patience);
  if (colon == 0 || error != std::errc() || read != end || stop.patience < 1)
    throw tandem::ConfigError("--early-stop '" + text +
                              "' is not understood; use METRIC:PATIENCE, such as accuracy:3, where PATIENCE is the "
                              "number of judgements, from 1, that may be no better");
  stop.metric = text.substr(0, colon);
  return stop;
}

void check_figures(const Options& options, const Task& task) {
  const bool averages = options.ema.has_value();
  if (!options.save_best.empty()) check_figure("--save-best", options.save_best, task, averages);
  if (options.early_stop) check_figure("--early-stop", options.early_stop->metric, task, averages);
}

Judging::Judging(tandem::Accelerator& accelerator, const Options& options, const Inputs& inputs, Subject subject,
                 Records& records, TrainingState& state)
    : accelerator_(accelerator),
      options_(options),
      inputs_(inputs),
      subject_(subject),
      records_(records),
      state_(state) {}

void Judging::after_update(std::int64_t epoch) {
  if (options_.eval_every.value_or(0) > 0 && state_.steps % *options_.eval_every == 0) judge(epoch, false);
}

void Judging::after_epoch(std::int64_t epoch) {
  if (!options_.eval_every) judge(epoch, false);
}

std::optional<Verdict> Judging::at_end(std::int64_t epoch) { return judge(epoch, true); }

bool Judging::ends_training() const {
  return options_.early_stop && state_.stops_by.name == options_.early_stop->metric &&
         state_.stops_by.judged_since >= options_.early_stop->patience;
}

std::string Judging::best() const {
  if (options_.save_best.empty() || !state_.best.value) return {};
  return "best " + options_.save_best + " " + shown(options_.save_best, *state_.best.value) + " after step " +
         std::to_string(state_.best.step);
}

std::optional<Verdict> Judging::judge(std::int64_t epoch, bool at_end) {
  const bool is_known = state_.judged_at == state_.steps;
  if (is_known && !at_end) return last_;
  records_.pause();
  // The record has more of the last one.
  const std::optional<Verdict> verdict = is_known && last_ && !records_.tracking().enabled() ? last_ : look(at_end);
  interrupted_ = !verdict;
  if (verdict && !is_known) {
    state_.judged_at = state_.steps;
    last_ = verdict;
    if (!at_end) records_.judged(epoch, state_.steps, *verdict);
    take(*verdict);
  }
  if (!at_end) subject_.model->train();
  records_.go_on();
  return verdict;
}

std::optional<Verdict> Judging::look(bool at_end) {
  const auto means =
      evaluate(accelerator_, subject_.model, options_, *inputs_.task, at_end ? &records_.tracking() : nullptr);
  if (!means) return std::nullopt;
  Verdict verdict = inputs_.task->verdict(*means);
  if (!subject_.average) return verdict;
  const auto averaged = subject_.average->swap_in();
  const auto its_means = evaluate(accelerator_, subject_.model, options_, *inputs_.task, nullptr);
  if (!its_means) return std::nullopt;
  add_averaged(verdict, inputs_.task->verdict(*its_means));
  return verdict;
}

// All ranks have the same figures.
void Judging::take(const Verdict& verdict) {
  if (options_.early_stop) {
    const std::string& name = options_.early_stop->metric;
    state_.stops_by.take(name, figure(verdict, name), state_.steps, more_is_better(name));
  }
  const std::string& name = options_.save_best;
  const bool has_one = state_.best.name == name && state_.best.value;
  if (name.empty() || !state_.best.take(name, figure(verdict, name), state_.steps, more_is_better(name))) return;
  keep_best(!has_one);
}

// `is_first`: what is there already is not of this training, unless it has these very weights: those that were judged
// after the checkpoint from which it goes on.
void Judging::keep_best(bool is_first) {
  bool is_other = false;
  if (accelerator_.is_main()) try_to([&] { is_other = write_best_weights(is_first); });
  const std::string& directory = options_.launch.checkpoints.directory;
  if (directory.empty()) return;
  if (is_other && !try_to([&] { keep_earlier(directory + "/best"); })) accelerator_.set_trigger();
  if (accelerator_.check_trigger()) return;  // so that nothing takes its place
  try_to([&] { accelerator_.save_state(directory + "/best"); });
}

void Judging::keep_earlier(const std::string& path) {
  const std::string aside = set_aside(path);
  if (!aside.empty()) records_.tell(path + " of an earlier training is kept as " + aside);
}

bool Judging::write_best_weights(bool is_first) {
  std::optional<tandem::optim::ExponentialMovingAverage::Swapped> averaged;
  if (options_.save_best.starts_with(kAveraged)) averaged.emplace(*subject_.average);
  const std::string path = best_weights_path(options_);
  const auto weights = tandem::io::weights_of(*subject_.model);
  const bool is_other = is_first && !has_weights(path, weights);
  if (is_other) keep_earlier(path);
  tandem::io::save_safetensors(path, weights, metadata_of_weights(options_, inputs_.classes));
  try_to_write_classes(accelerator_, path, inputs_.classes);
  return is_other;
}

// A training is worth more than a copy of it.
bool Judging::try_to(const std::function<void()>& write) {
  try {
    write();
    return true;
  } catch (const tandem::CheckpointError& error) {
    unwritten_.push_back(std::string("--save-best ") + error.what());
    warn(accelerator_, unwritten_.back() + "; training goes on");
    return false;
  }
}

}  // namespace train
