// A launch from its ranks' threads to its end. What a rank's body throws fires the launch's token (run_rank), which
// ends all waits; the launching thread then joins (join) and throws it on as a RankError (throw_rank_error).
#include "tandem/runtime/launch.h"

#include <algorithm>
#include <optional>
#include <stop_token>

#include <ATen/Context.h>
#include <c10/core/AllocatorConfig.h>
#include <c10/core/AutogradState.h>
#include <c10/util/Exception.h>

#include "backend/backend.h"
#include "backend/cores.h"
#include "backend/device_scope.h"
#include "backend/intra_op_threads.h"
#include "backend/out_of_memory.h"
#include "backend/rank_memory.h"
#include "comm/error_text.h"
#include "comm/nodes/reduction_thread.h"
#include "core/thread_team.h"
#include "runtime/check_config.h"
#include "runtime/determinism.h"
#include "runtime/launch_observer.h"
#include "runtime/launched_node.h"
#include "runtime/rank_training.h"
#include "tandem/core/error.h"
#include "tandem/trace/range.h"

namespace tandem {
namespace {

thread_local RankContext* this_rank = nullptr;

// Makes the calling thread rank `context.rank` for as long as it lives.
class RankScope {
 public:
  explicit RankScope(RankContext& context) : generators_(context.generators) {
    this_rank = &context;
    trace::name_thread(context.rank, context.state->config.nvtx_capture);
    // Backward and its hooks run on the rank's own thread (on GPUs too).
    c10::AutogradState::get_tls_state().set_multithreading_enabled(false);
    set_intra_op_threads(context.state->threads_per_rank);
    if (context.state->config.keep_tensor_memory) memory_.emplace();
    if (!context.device().is_cpu()) device_.emplace(context.device());
  }
  ~RankScope() { this_rank = nullptr; }
  RankScope(const RankScope&) = delete;
  RankScope& operator=(const RankScope&) = delete;

  // Waits for what the rank has enqueued: its results are for everybody then, and what went wrong shows itself.
  void finish_work() const {
    if (device_) device_->synchronize();
  }

 private:
  std::optional<RankMemoryScope> memory_;
  std::optional<DeviceScope> device_;
  rng::DefaultGeneratorGuard generators_;
};

// LibTorch's settings for GPUs that the launch asks for.
class GpuSettings {
 public:
  explicit GpuSettings(const LaunchConfig& config) {
    if (config.expandable_segments) c10::CachingAllocator::setAllocatorSettings("expandable_segments:True");
    if (!config.tf32) return;
    before_ = {at::globalContext().allowTF32CuBLAS(), at::globalContext().allowTF32CuDNN()};
    allow(*config.tf32, *config.tf32);
  }
  ~GpuSettings() {
    if (before_) allow(before_->first, before_->second);
  }
  GpuSettings(const GpuSettings&) = delete;
  GpuSettings& operator=(const GpuSettings&) = delete;

 private:
  static void allow(bool products, bool convolutions) {
    at::globalContext().setAllowTF32CuBLAS(products);
    at::globalContext().setAllowTF32CuDNN(convolutions);
  }

  std::optional<std::pair<bool, bool>> before_;  // nothing: not changed
};

// Tells an observer, if there is one, of a rank's body.
class ObservedBody {
 public:
  ObservedBody(LaunchObserver* observer, RankTraining& training) : observer_(observer), training_(training) {
    if (observer_) observer_->before_body(training_);
  }
  ~ObservedBody() {
    if (observer_) observer_->after_body(training_);
  }
  ObservedBody(const ObservedBody&) = delete;
  ObservedBody& operator=(const ObservedBody&) = delete;

 private:
  LaunchObserver* const observer_;
  RankTraining& training_;
};

// Tells it of the life of all ranks' threads.
class ObservedRanks {
 public:
  ObservedRanks(LaunchObserver* observer, comm::RankGroup& group) : observer_(observer) {
    if (!observer_) return;
    try {
      observer_->before_ranks(group);
    } catch (...) {
      observer_->after_ranks();
      throw;
    }
  }
  ~ObservedRanks() {
    if (observer_) observer_->after_ranks();
  }
  ObservedRanks(const ObservedRanks&) = delete;
  ObservedRanks& operator=(const ObservedRanks&) = delete;

 private:
  LaunchObserver* const observer_;
};

// Tells it of the end of one of them.
class ObservedThread {
 public:
  explicit ObservedThread(LaunchObserver* observer) : observer_(observer) {}
  ~ObservedThread() {
    if (observer_) observer_->rank_ended();
  }
  ObservedThread(const ObservedThread&) = delete;
  ObservedThread& operator=(const ObservedThread&) = delete;

 private:
  LaunchObserver* const observer_;
};

// What a launch's ranks run.
struct Program {
  const std::function<void(Accelerator&)>& body;
  LaunchObserver* observer;
};

// `note`: what more is to be said of the rank's failure.
void run_rank(const AcceleratorState& state, comm::RankGroup& group, BackendSession& session, int rank,
              const Program& program, std::string& note) {
  const c10::Device device = state.device_of(rank);
  RankContext context{.rank = rank,
                      .state = &state,
                      .group = &group,
                      .communicator = nullptr,
                      .generators = rng::make_generators(state.config.seed, rank, device),
                      .window = {state.config.gradient_accumulation_steps, state.config.sync_with_dataloader,
                                 state.logical_ranks() / state.world_size()}};
  if (state.config.exact)
    context.shards = std::make_unique<rng::ShardGenerators>(state.config.seed, rank, state.world_size(),
                                                            context.shards_each(), device, context.generators);
  const RankScope scope(context);
  context.communicator = session.make_communicator(rank);
  const auto cancel_if_thrown = [&](const std::function<void()>& work) {
    try {
      work();
    } catch (...) {
      // Before anything goes whose end would have other things to say, or would wait.
      group.token().cancel(std::current_exception(), rank);
      throw;
    }
  };
  cancel_if_thrown([&] {
    RankTraining training(context);
    Accelerator accelerator(training);
    const OutOfMemoryWatch watch([&](const OutOfMemory&) { note = training.memory_summary(); });
    const ObservedBody observed(program.observer, training);
    // Within the training's life, which ends when its last checkpoint in the background is written.
    cancel_if_thrown([&] {
      program.body(accelerator);
      training.throw_if_not_finite();
      training.checkpoints.finish_saving();
      scope.finish_work();
      if (program.observer) program.observer->body_ended(training);
    });
  });
  group.depart(rank);
}

std::vector<std::vector<int>> cores_of_ranks(const AcceleratorState& state) {
  std::vector<std::vector<int>> near;
  for (const c10::Device device : state.devices) near.push_back(state.backend->cores_near(device.index()));
  return core_shares(allowed_cores(), std::move(near), state.config.pin_threads);
}

// Waits until all ranks have ended or the token has fired. The launching thread has nothing else to do than to look
// after the ranks' time limit. `node`: of several; null: there is one.
void watch(ThreadTeam& team, comm::RankGroup& group, std::chrono::nanoseconds timeout, const LaunchObserver* observer,
           LaunchedNode* node) {
  const auto interval =
      std::clamp<std::chrono::nanoseconds>(timeout / 10, std::chrono::milliseconds(1), std::chrono::seconds(1));
  while (!team.wait_for(interval) && !group.token().cancelled()) {
    if (observer && observer->holds_ranks()) {
      group.forgive_waits();
      continue;
    }
    const auto blamed = group.overdue(timeout);
    if (!blamed) continue;
    const auto seconds = std::chrono::duration<double>(timeout).count();
    std::string text = "a rank waited longer than the time limit of " + c10::str(seconds) + " s:\n" + group.report();
    int rank = *blamed;
    if (node && group.waits(rank)) {  // as all of this node do: for whom?
      const auto [others, running] = node->ask_others();
      text += others;
      if (running >= 0) rank = running;
    }
    group.token().cancel(std::make_exception_ptr(CollectiveError(text)), rank);
  }
}

LaunchEnd join(ThreadTeam& team, BackendSession& session, const CancelToken& token) {
  const bool cancelled = token.cancelled();
  LaunchEnd end;
  if (cancelled) end = session.cancel();
  for (const int rank : end.stuck) team.abandon(rank);
  team.join();
  return cancelled ? end : session.finish();
}

bool says_out_of_memory(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const c10::OutOfMemoryError&) {
    return true;
  } catch (...) {
    return false;
  }
}

// `notes`: of the ranks.
// Of the ranks from `first_rank` on.
[[noreturn]] void throw_rank_error(const CancelToken& token, const LaunchEnd& end,
                                   const std::vector<std::string>& notes, int first_rank) {
  const std::string blamed = token.rank() >= 0 ? "rank " + std::to_string(token.rank()) + ": " : "";
  std::string text = blamed + text_of(token.reason());
  const auto place = static_cast<std::size_t>(token.rank() - first_rank);
  if (place < notes.size() && says_out_of_memory(token.reason()) && !notes[place].empty())
    text += ". Then " + notes[place];
  text += (end.problem.empty() ? "" : ". When the launch was ended: " + end.problem);
  try {
    std::rethrow_exception(token.reason());
  } catch (const SampleError& error) {
    // The text says which sample it was; the type that a caller looks for is the dataset's.
    try {
      error.rethrow_nested();
    } catch (...) {
      throw RankError(token.rank(), text);
    }
  } catch (...) {
    throw RankError(token.rank(), text);  // nests the exception that is being handled
  }
}

}  // namespace

RankContext* current_rank() noexcept { return this_rank; }

namespace {

void require_no_rank() {
  if (current_rank())
    throw ConfigError("launch was called on rank " + std::to_string(current_rank()->rank) +
                      " of a running launch; call it outside of every rank's body");
}

// Runs the ranks of `group`, which are of this process. `exchange`: with the ranks of other nodes; null: there are
// none.
LaunchEnd run_team(const AcceleratorState& state, const Program& program, comm::RankGroup& group,
                   comm::NodeExchange* exchange, std::vector<std::string>& notes) {
  const LaunchConfig& config = state.config;
  CancelToken& token = group.token();
  const auto session = state.backend->begin(group, state.devices, config.transport, config.on_warning);
  const ObservedRanks observed(program.observer, group);
  std::optional<comm::ReductionThread> reductions;
  if (exchange && state.devices.front().is_cpu()) reductions.emplace(*exchange, group.posted(), token);
  ThreadTeam team({.size = state.local_ranks(), .name = "rank", .cores = cores_of_ranks(state)}, token, [&](int i) {
    const ObservedThread thread(program.observer);
    run_rank(state, group, *session, state.first_rank() + i, program, notes[static_cast<std::size_t>(i)]);
  });
  const std::stop_callback cancel(config.cancel, [&token] {
    token.cancel(std::make_exception_ptr(Cancelled("the launch was cancelled by its caller")));
  });
  watch(team, group, config.timeout, program.observer, state.joined.get());
  return join(team, *session, token);
}

void throw_if_not_well(const LaunchEnd& end) {
  if (!end.problem.empty()) throw Error("all ranks have ended well, but not what they shared: " + end.problem);
}

void run_in_one_process(const AcceleratorState& state, const Program& program) {
  CancelToken token;
  comm::RankGroup group(state.world_size(), token);
  std::vector<std::string> notes(state.devices.size());
  const LaunchEnd end = run_team(state, program, group, nullptr, notes);
  if (token.cancelled()) throw_rank_error(token, end, notes, 0);
  throw_if_not_well(end);
}

[[noreturn]] void throw_failure_of(const comm::NodeFailure& failure) {
  std::string text = failure.rank >= 0 ? "rank " + std::to_string(failure.rank) + ", " : "";
  const std::string node = "node " + std::to_string(failure.node) + " (host " + failure.host + ")";
  if (failure.node >= 0 && !failure.text.starts_with(node)) text += node + ": ";  // what was not told names it itself
  try {
    throw CollectiveError(failure.text);
  } catch (...) {
    throw RankError(failure.rank, text + failure.text);  // nests it
  }
}

void run_on_node(const AcceleratorState& state, const Program& program) {
  CancelToken token;
  LaunchedNode& node = *state.joined;
  node.begin(token);
  std::vector<std::string> notes(state.devices.size());
  LaunchEnd end;
  std::exception_ptr error;  // of this process and no rank
  try {
    comm::RankGroup group(node.exchange(), token, state.devices.front().is_cpu());
    const LaunchedNode::Shown shown(node, group);
    end = run_team(state, program, group, &node.exchange(), notes);
    if (!token.cancelled()) throw_if_not_well(end);
  } catch (...) {
    error = std::current_exception();
    token.cancel(error);
  }
  if (const auto failure = node.leave()) throw_failure_of(*failure);
  if (error) std::rethrow_exception(error);
  if (token.cancelled()) throw_rank_error(token, end, notes, state.first_rank());
}

void run_ranks(const AcceleratorState& state, const Program& program) {
  const LaunchConfig& config = state.config;
  const Determinism determinism(config);
  const GpuSettings settings(config);
  if (config.keep_tensor_memory) install_rank_memory();
  state.joined ? run_on_node(state, program) : run_in_one_process(state, program);
}

}  // namespace

void launch(const LaunchConfig& config, const std::function<void(Accelerator&)>& body) {
  launch(config, body, nullptr);
}

void launch(const LaunchConfig& config, const std::function<void(Accelerator&)>& body, LaunchObserver* observer) {
  require_no_rank();
  run_ranks(examine(config), {body, observer});
}

void launch_on(const AcceleratorState& state, const std::function<void(Accelerator&)>& body) {
  require_no_rank();
  if (!state.backend || state.devices.empty()) throw ConfigError("launch_on needs a state that `examine` has given");
  check_config(state.config);
  if (spans_nodes(state.config) && !state.joined)
    throw ConfigError(
        "launch_on of several nodes needs a state that was examined with them; set nodes before `examine`");
  AcceleratorState mine = state;
  apply_exact(mine);
  run_ranks(mine, {body, nullptr});
}

}  // namespace tandem
