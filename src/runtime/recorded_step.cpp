#include "runtime/recorded_step.h"

#include <algorithm>
#include <cstdio>
#include <exception>
#include <mutex>
#include <utility>

#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>

#include "backend/backend.h"
#include "backend/device_memory.h"
#include "backend/device_scope.h"
#include "tandem/core/error.h"
#include "tandem/trace/range.h"

namespace tandem {
namespace {

constexpr std::size_t kRehearsals = 3;  // the first makes states and handles, the second allocates as all later ones
constexpr int kVainRecordings = 3;

// LibTorch tells a device's default generator, which ranks that share the device take turns with, of each graph.
std::mutex& one_at_a_time() {
  static std::mutex mutex;
  return mutex;
}

// While alive, models and optimizers see `recording`.
class Scope {
 public:
  Scope(nn::AccumulationWindow& window, nn::Recording& recording) : window_(window) {
    window_.set_recording(&recording);
  }
  ~Scope() { window_.set_recording(nullptr); }
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

 private:
  nn::AccumulationWindow& window_;
};

// While alive, the rank's calls to the others are errors: they would wait for it to record.
class NoCalls {
 public:
  NoCalls(comm::RankGroup& group, int rank) : group_(group), rank_(rank) { group_.forbid_calls(rank_, true); }
  ~NoCalls() { group_.forbid_calls(rank_, false); }
  NoCalls(const NoCalls&) = delete;
  NoCalls& operator=(const NoCalls&) = delete;

 private:
  comm::RankGroup& group_;
  const int rank_;
};

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

std::string milliseconds(double seconds) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g ms", 1e3 * seconds);
  return text;
}

bool same(const at::Tensor& a, const at::Tensor& b) { return a.defined() == b.defined() && a.is_same(b); }

}  // namespace

RecordedStep::RecordedStep(RankContext& context, const CompileStepOptions& options,
                           std::function<std::vector<at::Tensor>()> parameters,
                           std::function<std::optional<std::string>()> obstacle)
    : context_(context),
      options_(options),
      parameters_(std::move(parameters)),
      obstacle_(std::move(obstacle)),
      timing_(context, options.keep_faster) {}

RecordedStep::~RecordedStep() { forget(); }

// The ranks' values; the least of them.
std::uint64_t RecordedStep::meet(std::uint64_t mine, bool& alike) const {
  const comm::CallRecord record{.operation = "compile_step"};
  const auto all = context_.group->meet(context_.rank, record, mine);
  const auto [least, most] = std::minmax_element(all.begin(), all.end());
  alike = *least == *most;
  return *least;
}

RecordedStep::Turn RecordedStep::next(const std::vector<at::Tensor>& inputs) {
  if (context_.window.recording()) throw ConfigError("a compiled step was called within another one");
  if (auto why = obstacle_()) {
    reason_ = *why;
    return Turn::call;
  }
  reason_ = given_up_;
  if (all_gave_up_) return Turn::call;
  if (timing_.complete()) choose();
  const Turn mine = wanted(inputs);
  bool alike = true;
  const auto turn = static_cast<Turn>(meet(static_cast<std::uint64_t>(mine), alike));
  if (turn < mine) reason_ = "another rank cannot replay this call";
  return turn;
}

// On all ranks alike.
void RecordedStep::choose() {
  timing_.conclude();
  if (timing_.times()->replays) return;
  forget();
  all_gave_up_ = true;
  given_up_ = "replayed steps are not faster by a twentieth: " + milliseconds(timing_.times()->replayed) + " to " +
              milliseconds(timing_.times()->called) + " called";
}

// Calls before the recording; those after the first three are measured.
std::size_t RecordedStep::rehearsals_wanted() const { return kRehearsals + (timing_.open() ? StepTiming::kSteps : 0); }

RecordedStep::Turn RecordedStep::wanted(const std::vector<at::Tensor>& inputs) {
  if (!given_up_.empty()) {
    reason_ = given_up_;
    return Turn::call;
  }
  for (const at::Tensor& input : inputs)
    if (input.device() != context_.device()) {
      reason_ = "a tensor that the step was called with is on " + input.device().str() + ", not on " +
                context_.device().str();
      return Turn::call;
    }
  if (pieces_.empty()) return rehearsals_ < rehearsals_wanted() ? Turn::rehearse : Turn::record;
  if (const auto other = other_inputs(inputs)) {
    reason_ = *other;
    return Turn::call;
  }
  const auto what = change();
  if (!what) return Turn::replay;
  reason_ = *what;
  forget();
  if (vain_recordings_ >= kVainRecordings) {
    give_up("before each call " + *what);
    reason_ = given_up_;
    return Turn::call;
  }
  rehearsals_ = kRehearsals - 1;  // with what has changed, once more
  timing_.restart();
  return Turn::rehearse;
}

std::optional<std::string> RecordedStep::other_inputs(const std::vector<at::Tensor>& inputs) const {
  if (inputs.size() != inputs_.size())
    return "the step was recorded with " + std::to_string(inputs_.size()) + " tensors";
  for (std::size_t i = 0; i < inputs.size(); ++i)
    if (inputs[i].sizes() != inputs_[i].sizes() || inputs[i].scalar_type() != inputs_[i].scalar_type())
      return "tensor " + std::to_string(i) + " has sizes " + c10::str(inputs[i].sizes()) + ", and had " +
             c10::str(inputs_[i].sizes()) + " when the step was recorded";
  return std::nullopt;
}

// What has changed since the recording, which a replay would not notice.
std::optional<std::string> RecordedStep::change() const {
  const std::vector<at::Tensor> now = parameters_();
  if (now.size() != seen_.size()) return "the prepared models have other parameters";
  for (std::size_t i = 0; i < now.size(); ++i) {
    const Seen& seen = seen_[i];
    if (!now[i].is_same(seen.parameter) || now[i].const_data_ptr() != seen.data)
      return "a parameter is not where it was";
    if (now[i].requires_grad() != seen.trained) return "a parameter was frozen, or is trained again";
    if (!seen.drops && !same(now[i].grad(), seen.before)) return "a gradient was there, or not, that the step adds to";
  }
  for (const HostWork& work : host_work_)
    if (auto why = work.obstacle ? work.obstacle() : std::nullopt) return why;
  return std::nullopt;
}

void RecordedStep::rehearse(const std::function<void()>& step) {
  rehearsals_ += 1;
  const Scope scope(context_.window, *this);
  if (rehearsals_ > kRehearsals)
    timing_.called(step);
  else
    step();
}

void RecordedStep::begin_piece() {
  pieces_.push_back({context_.state->backend->make_graph(), {}});
  pieces_.back().graph->begin(context_.generators.cuda.at(static_cast<std::size_t>(context_.device().index())));
}

void RecordedStep::between(std::function<void()> work, std::uint64_t signature) {
  signature_ = signature_ * 31 + signature;
  pieces_.back().graph->end();
  pieces_.back().then = std::move(work);
  begin_piece();
}

void RecordedStep::record_pieces(const std::function<void()>& step) {
  const std::lock_guard lock(one_at_a_time());
  const Scope scope(context_.window, *this);
  const NoCalls no_calls(*context_.group, context_.rank);
  recording_ = true;
  try {
    begin_piece();
    step();
    pieces_.back().graph->end();
  } catch (...) {
    if (!pieces_.empty()) pieces_.back().graph->abandon();
    recording_ = false;
    throw;
  }
  recording_ = false;
}

// A graph has memory of its own, and whoever did not ask for it may still call the step, or evaluate.
void RecordedStep::check_room() const {
  const auto room = device_room(context_.device());
  if (!room || room->free / 2 >= room->most_beyond_now) return;
  const auto megabytes = [](std::size_t bytes) { return std::to_string(bytes / 1'000'000) + " MB"; };
  throw ConfigError("its graph takes up to " + megabytes(room->most_beyond_now) + " of memory, and " +
                    context_.device().str() + " has " + megabytes(room->free) + " left");
}

// Empty, or what went wrong.
std::string RecordedStep::try_to_record(const MakeInputs& make_inputs, const std::function<void()>& step) {
  try {
    if (options_.keep_faster) check_room();
    inputs_ = make_inputs();
    record_pieces(step);
    return "";
  } catch (const Cancelled&) {
    throw;
  } catch (const c10::Error& error) {
    return first_line(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return first_line(error.what());
  }
}

bool RecordedStep::record(const MakeInputs& make_inputs, const std::function<void()>& step) {
  forget();
  fresh_ = true;
  vain_recordings_ += 1;
  for (const at::Tensor& parameter : parameters_())
    seen_.push_back({parameter, parameter.const_data_ptr(), parameter.requires_grad(), parameter.grad(), {}, false});
  // While one rank makes graphs, no other's kernels wait for it.
  synchronize(context_.device());
  bool alike = true;
  meet(0, alike);
  // A graph has memory of its own, and while one is recorded the allocator gives none back.
  if (context_.rank == 0) free_device_memory(context_.device());
  meet(0, alike);
  std::string problem = try_to_record(make_inputs, step);
  const bool everywhere = meet(problem.empty() ? signature_ | 1 : 0, alike) != 0 && alike;
  if (problem.empty() && !everywhere) problem = "another rank could not record it, or recorded another one";
  for (Seen& seen : seen_) {
    seen.after = std::exchange(seen.parameter.mutable_grad(), seen.before);
    seen.drops = seen.before.defined() && !same(seen.before, seen.after);
    if (seen.drops) seen.before.reset();
  }
  if (problem.empty()) return true;
  give_up(problem);
  all_gave_up_ = true;
  reason_ = given_up_;
  return false;
}

void RecordedStep::give_up(const std::string& why) {
  forget();
  given_up_ = "the step cannot be recorded: " + why;
}

void RecordedStep::forget() {
  const std::lock_guard lock(one_at_a_time());
  pieces_.clear();
  host_work_.clear();
  inputs_.clear();
  seen_.clear();
  signature_ = 0;
}

void RecordedStep::run_pieces(const std::vector<at::Tensor>& inputs) {
  const trace::Range range(trace::Event::replay);
  const at::NoGradGuard no_grad;  // the copies are no part of anybody's graph
  for (std::size_t i = 0; i < inputs.size(); ++i)
    if (!inputs[i].is_same(inputs_[i])) inputs_[i].copy_(inputs[i], /*non_blocking=*/true);
  for (const Piece& piece : pieces_) {
    piece.graph->replay();
    if (piece.then) piece.then();
  }
  for (Seen& seen : seen_) seen.parameter.mutable_grad() = seen.after;
}

void RecordedStep::do_step(const std::vector<at::Tensor>& inputs) {
  for (const HostWork& work : host_work_)
    if (work.before) work.before();
  run_pieces(inputs);
  // From the last: what was opened first ends last.
  for (auto work = host_work_.rbegin(); work != host_work_.rend(); ++work)
    if (work->after) work->after();
}

void RecordedStep::replay(const std::vector<at::Tensor>& inputs) {
  context_.group->token().check();
  if (std::exchange(fresh_, false)) {
    do_step(inputs);  // the device makes a graph ready when it first runs it
  } else {
    timing_.replayed([&] { do_step(inputs); });
    vain_recordings_ = 0;
  }
  replays_ += 1;
  reason_.clear();
}

}  // namespace tandem
