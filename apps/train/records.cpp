#include "records.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "common/interrupt.h"
#include "warn.h"

namespace train {
namespace {

bool shows_progress(const tandem::Accelerator& accelerator, const Options& options) {
  return accelerator.is_main() && options.progress;
}

// Where this thread's time goes. A profile has a recorder of its own, and a thread has one only.
std::unique_ptr<tandem::trace::Recorder> make_recorder(const tandem::Accelerator& accelerator, const Options& options) {
  const bool wanted = shows_progress(accelerator, options) || !options.log_with.empty();
  if (!wanted || !options.profile.directory.empty()) return nullptr;
  return std::make_unique<tandem::trace::Recorder>();
}

}  // namespace

Records::Records(tandem::Accelerator& accelerator, const Options& options, const Inputs& inputs, Unsaved& unsaved)
    : accelerator_(accelerator),
      options_(options),
      inputs_(inputs),
      unsaved_(unsaved),
      recorder_(make_recorder(accelerator, options)),
      progress_(shows_progress(accelerator, options), inputs.total_steps, recorder_.get()),
      tracking_(accelerator, options, recorder_.get()),
      updates_(accelerator.communicator(), accelerator.device()) {}

void Records::begin(std::int64_t steps, std::int64_t judged_at, const std::string& resumed_from) {
  if (accelerator_.is_main()) inputs_.log->begin(steps, judged_at);
  tracking_.begin(options_, steps);
  if (!resumed_from.empty()) {
    if (accelerator_.is_main()) unsaved_.saving(steps, resumed_from);
    tracking_.log_event("resumed", resumed_from, steps);
  }
  throughput_.start();
}

bool Records::wants_norm(std::int64_t step, bool recorded) const {
  return !options_.log_json.empty() || (recorded && tracking_.enabled()) || tracking_.wants(step);
}

void Records::end_update(const Update& update) {
  if (accelerator_.is_main()) unsaved_.made(update.step);
  if (startup_seconds_ == 0) startup_seconds_ = seconds_since_process_start();
  const std::int64_t samples = update.samples * accelerator_.world_size();
  const double rate = throughput_.update(samples);
  tracking_.count(update);
  send(options_.log_json.empty() ? Sent{} : log_of(update, rate),
       tracking_.wants(update.step) ? tracking_.record() : Sent{});
  updates_.deliver();
  progress_.count(samples);
  show_progress(update);
}

// All values of an update together.
void Records::send(Sent log, Sent means) {
  if (log.scalars.empty()) std::swap(log, means);
  if (log.scalars.empty()) return;
  const std::size_t first = log.scalars.size(), rest = means.scalars.size();
  std::vector<DeferredScalars::Scalar> all = std::move(log.scalars);
  all.insert(all.end(), means.scalars.begin(), means.scalars.end());
  const auto take = [first, rest, take_log = std::move(log.take),
                     take_means = std::move(means.take)](const DeferredScalars::Arrived& arrived) {
    take_log(arrived.part(0, first));
    if (rest > 0) take_means(arrived.part(first, rest));
  };
  if (log.same_everywhere && rest == 0)
    updates_.add(all, take);
  else
    updates_.add_of_all(all, take);
}

Sent Records::log_of(const Update& update, double samples_per_second) {
  std::vector<DeferredScalars::Scalar> scalars = scalars_of(update.losses);
  const std::size_t norm = scalars.size();
  scalars.emplace_back(update.grad_norm);
  const UpdateMetrics metrics{
      .step = update.step, .epoch = update.epoch, .lr = update.lr, .samples_per_second = samples_per_second};
  return {std::move(scalars),
          [this, metrics, norm, losses = update.losses](const DeferredScalars::Arrived& arrived) {
            UpdateMetrics all = metrics;
            all.loss = mean_of(losses, arrived);
            all.grad_norm = arrived.of(0, norm);
            write(all);
          },
          /*same_everywhere=*/update.losses.windows > 0};
}

void Records::write(const UpdateMetrics& metrics) {
  if (!accelerator_.is_main()) return;
  const std::string problem = inputs_.log->write(metrics);
  if (!problem.empty()) warn(accelerator_, "--log-json " + problem + "; training goes on");
}

void Records::show_progress(const Update& update) {
  progress_loss_.deliver();
  if (progress_loss_.pending() > 0 || !progress_.due()) return;
  const auto batches = static_cast<double>(std::max<std::int64_t>(update.losses.batches, 1));
  progress_loss_.add({update.losses.sum}, [this, batches, epoch = update.epoch,
                                           step = update.step](const DeferredScalars::Arrived& arrived) {
    progress_.show(epoch, step, arrived.of(0, 0) / batches);
  });
}

void Records::pause() {
  updates_.deliver_all();
  throughput_.pause();
}

void Records::abandon() noexcept {
  try {
    updates_.deliver_given();
  } catch (...) {
    // The exception that has ended the training says more.
  }
}

void Records::judged(std::int64_t epoch, std::int64_t steps, const Verdict& verdict) {
  if (!accelerator_.is_main()) return;
  const std::string problem = inputs_.log->write(steps, epoch, verdict);
  if (!problem.empty()) warn(accelerator_, "--log-json " + problem + "; training goes on");
  tracking_.log_verdict(verdict);
  tell("epoch " + std::to_string(epoch + 1) + ", step " + std::to_string(steps) + ": " + verdict.sentence);
}

void Records::tell(const std::string& line) {
  if (options_.quiet || !accelerator_.is_main()) return;
  untold_ += line + "\n";
  if (is_read(STDOUT_FILENO)) tell_all();
}

void Records::tell_all() {
  progress_.clear();
  std::fputs(std::exchange(untold_, {}).c_str(), stdout);
  std::fflush(stdout);
}

void Records::saving(std::int64_t steps, const std::string& path) {
  if (accelerator_.is_main()) unsaved_.saving(steps, path);
  tracking_.log_event("checkpoint", path, steps);
}

void Records::end_training() {
  send({}, tracking_.record());
  pause();
  progress_loss_.deliver_all();
  progress_.clear();
}

FinalMetrics Records::measured() const {
  return {.train_seconds = throughput_.train_seconds(),
          .samples_per_second = throughput_.samples_per_second(),
          .startup_seconds = startup_seconds_,
          .peak_rss_mb = peak_rss_mb()};
}

bool Records::wants_sample() const { return !options_.quiet || !options_.log_json.empty() || tracking_.enabled(); }

std::string Records::finish(const FinalMetrics& metrics, tandem::io::RunStatus status) {
  if (is_read(STDOUT_FILENO)) tell_all();
  if (metrics.judged) tracking_.log_verdict(metrics.verdict);
  tracking_.finish(status, metrics);
  return inputs_.log->finish(metrics, apps::interrupted);
}

}  // namespace train
