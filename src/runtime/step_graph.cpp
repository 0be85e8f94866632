#include "tandem/runtime/step_graph.h"

#include <algorithm>
#include <exception>
#include <mutex>
#include <utility>

#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#include "tandem/core/error.h"
#include "tandem/trace/range.h"

namespace tandem {
namespace {

// While alive, models and optimizers see `recording`.
class Scope {
 public:
  Scope(GradientState& state, nn::Recording& recording) : state_(state) { state_.recording = &recording; }
  ~Scope() { state_.recording = nullptr; }
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

 private:
  GradientState& state_;
};

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

// Everything that this thread has enqueued is done.
void synchronize(c10::Device device) {
  const c10::impl::VirtualGuardImpl guard(device.type());
  guard.synchronizeStream(guard.getStream(device));
}

}  // namespace

StepGraph::StepGraph(RankContext& context, std::function<std::vector<at::Tensor>()> parameters,
                     std::function<std::optional<std::string>()> obstacle)
    : context_(context), parameters_(std::move(parameters)), obstacle_(std::move(obstacle)) {}

// The ranks' values; the least of them.
std::uint64_t StepGraph::meet(std::uint64_t mine, bool& alike) const {
  const comm::CallRecord record{.operation = comm::Operation::compile_step};
  const auto all = context_.group->meet(context_.rank, record, mine);
  const auto [least, most] = std::minmax_element(all.begin(), all.end());
  alike = *least == *most;
  return *least;
}

StepGraph::Turn StepGraph::next(const std::vector<at::Tensor>& inputs) {
  if (auto why = obstacle_()) {
    reason_ = *why;
    return Turn::call;
  }
  const Turn mine = wanted(inputs);
  bool alike = true;
  const auto turn = static_cast<Turn>(meet(static_cast<std::uint64_t>(mine), alike));
  if (turn == Turn::record) forget();
  if (turn < mine && !given_up_) reason_ = "another rank cannot replay this call";
  if (turn == Turn::replay) reason_.clear();
  return turn;
}

StepGraph::Turn StepGraph::wanted(const std::vector<at::Tensor>& inputs) {
  if (given_up_) return Turn::call;
  for (const at::Tensor& input : inputs)
    if (input.device() != context_.device()) {
      reason_ = "a tensor that the step was called with is on " + input.device().str() + ", not on " +
                context_.device().str();
      return Turn::call;
    }
  if (rehearsals_ < kRehearsals) return Turn::rehearse;
  if (pieces_.empty()) return Turn::record;
  if (const auto change = change_of(inputs)) {
    reason_ = *change;
    return Turn::call;
  }
  for (const HostWork& work : host_work_)
    if (const auto why = work.obstacle ? work.obstacle() : std::nullopt) {
      reason_ = *why;
      forget();
      return Turn::record;
    }
  return Turn::replay;
}

std::optional<std::string> StepGraph::change_of(const std::vector<at::Tensor>& inputs) const {
  if (inputs.size() != inputs_.size())
    return "the step was recorded with " + std::to_string(inputs_.size()) + " tensors";
  for (std::size_t i = 0; i < inputs.size(); ++i)
    if (inputs[i].sizes() != inputs_[i].sizes() || inputs[i].scalar_type() != inputs_[i].scalar_type())
      return "tensor " + std::to_string(i) + " has sizes " + c10::str(inputs[i].sizes()) + ", and had " +
             c10::str(inputs_[i].sizes()) + " when the step was recorded";
  return std::nullopt;
}

void StepGraph::rehearse(const std::function<void()>& step) {
  rehearsals_ += 1;
  const Scope scope(context_.gradients, *this);
  step();
}

void StepGraph::begin_piece() {
  pieces_.push_back({context_.state->backend->make_graph(), {}});
  try {
    pieces_.back().graph->begin(context_.generators.cuda.at(static_cast<std::size_t>(context_.device().index())));
  } catch (...) {
    pieces_.pop_back();
    throw;
  }
}

void StepGraph::between(std::function<void()> work, std::uint64_t signature) {
  signature_ = signature_ * 31 + signature;
  pieces_.back().graph->end();
  pieces_.back().then = std::move(work);
  begin_piece();
}

void StepGraph::record_pieces(const std::function<void()>& step) {
  // LibTorch registers the generator that is its default meanwhile, which ranks that share a GPU take turns with.
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  const Scope scope(context_.gradients, *this);
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

bool StepGraph::record(const std::vector<at::Tensor>& inputs, const std::function<void()>& step) {
  forget();
  const std::vector<at::Tensor> parameters = parameters_();
  std::vector<at::Tensor> gradients;
  for (const at::Tensor& parameter : parameters) gradients.push_back(parameter.grad());
  // While one rank makes graphs, no other's kernels wait for it.
  synchronize(context_.device());
  bool alike = true;
  meet(0, alike);
  std::string problem;
  try {
    record_pieces(step);
  } catch (const Cancelled&) {
    throw;
  } catch (const c10::Error& error) {
    problem = first_line(error.what_without_backtrace());
  } catch (const std::exception& error) {
    problem = first_line(error.what());
  }
  const std::uint64_t mine = problem.empty() ? signature_ | 1 : 0;
  const bool everywhere = meet(mine, alike) != 0 && alike;
  if (problem.empty() && !everywhere) problem = "another rank could not record the step, or recorded another one";
  if (problem.empty()) {
    inputs_ = inputs;
    return true;
  }
  for (std::size_t i = 0; i < parameters.size(); ++i) parameters[i].mutable_grad() = gradients[i];
  give_up(problem);
  return false;
}

void StepGraph::give_up(const std::string& reason) {
  forget();
  given_up_ = true;
  reason_ = "the step cannot be recorded: " + reason;
}

void StepGraph::forget() {
  pieces_.clear();
  host_work_.clear();
  inputs_.clear();
  signature_ = 0;
}

void StepGraph::replay(const std::vector<at::Tensor>& inputs) {
  context_.group->token().check();
  const trace::Range range(trace::Event::replay);
  for (const HostWork& work : host_work_)
    if (work.before) work.before();
  for (std::size_t i = 0; i < inputs.size(); ++i)
    if (!inputs[i].is_same(inputs_[i])) inputs_[i].copy_(inputs[i], /*non_blocking=*/true);
  for (const Piece& piece : pieces_) {
    piece.graph->replay();
    if (piece.then) piece.then();
  }
  for (const HostWork& work : host_work_)
    if (work.after) work.after();
  replays_ += 1;
}

}  // namespace tandem
