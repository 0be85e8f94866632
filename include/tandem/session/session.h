#pragma once

#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include <torch/nn/module.h>

#include "tandem/io/safetensors.h"
#include "tandem/runtime/launch.h"

namespace tandem {

/// What a session is doing.
enum class SessionState {
  idle,       ///< nothing was started yet
  starting,   ///< the machine is examined, ranks are made
  running,    ///< ranks run the body
  pausing,    ///< pause was called; ranks are on their way to the next micro-batch or batch
  paused,     ///< all ranks stand still
  stopping,   ///< request_stop was called; ranks finish their step, and then the rest of the body
  ended,      ///< the body has ended on all ranks
  cancelled,  ///< cancel was called, or a stop requested of LaunchConfig::cancel
  failed      ///< a rank or a callback threw; wait throws it
};

/// "idle", "starting" and so on.
const char* to_string(SessionState state) noexcept;

/// Where a session's training is; see Session::progress.
struct Progress {
  SessionState state = SessionState::idle;  ///< what the session is doing
  std::int64_t epoch = 0;                   ///< of the loader that rank 0 took a batch from last, from 0
  std::int64_t step = 0;          ///< accumulation windows that rank 0 has closed, or what load_state continued
  std::int64_t epoch_step = 0;    ///< batches of the epoch that rank 0 has taken
  std::int64_t epoch_steps = -1;  ///< batches that it has; -1: not known
  std::int64_t total_steps = -1;  ///< as told by Accelerator::set_total_steps; -1: not known
  double loss = 0;                ///< of rank 0's last micro-batch, at most some 20 ms old; NaN: none yet
  double steps_per_second = 0;    ///< smoothed over a few seconds, without pauses
  double seconds_left = -1;       ///< to total_steps, or else to the end of the epoch; -1: not known
};

/// Something that happened, for SessionOptions::on_event.
struct SessionEvent {
  /// What happened.
  enum class Kind {
    started,  ///< ranks begin to run the body
    step,     ///< a window was closed; of several that wait for the callback the last is left
    epoch,    ///< an epoch of a prepared loader has begun on rank 0; likewise, but see SessionOptions::every_epoch
    paused,
    resumed,
    saved,        ///< save_now has saved: `text` is the directory
    save_failed,  ///< save_now has not: `text` says why. Training goes on, or has ended meanwhile
    ended,        ///< this or one of the next is the last event. `wait` may return before its callback
    cancelled,
    failed  ///< `text` is what wait throws, in words
  };
  Kind kind = Kind::step;     ///< what happened
  Progress progress;          ///< where the training was then
  std::string text{};         ///< where the kind says so; empty otherwise
  std::int64_t left_out = 0;  ///< events of this kind that came before it and were not delivered
};

/// Takes a function and calls it soon, once, on a thread of its choice; one at a time, in order. As of an event loop:
///
///     [window](std::function<void()> call) { QMetaObject::invokeMethod(window, std::move(call), Qt::QueuedConnection);
///     }
using Executor = std::function<void(std::function<void()>)>;

/// Callbacks of a session, and where they run.
struct SessionOptions {
  /// Where callbacks are called; empty: on a thread of the session.
  Executor executor{};
  /// Is called with every event, one call at a time. An exception from it ends the session as failed. A slow callback
  /// slows nothing down.
  std::function<void(const SessionEvent&)> on_event{};
  /// The least time between two events of the kind `step`.
  std::chrono::milliseconds step_interval = std::chrono::milliseconds(16);
  /// Each epoch has its event, as it begins, and a slow callback gets them all. Otherwise of epochs that follow each
  /// other within 16 ms, or while a callback runs, the last one has.
  bool every_epoch = false;
};

/// How a session may wait at Session::pause.
struct PauseOptions {
  bool release_memory = false;  ///< gives the memory that LibTorch's allocators keep for reuse back to the devices
};

/// The weights of a moment: copies, on the CPU, of all parameters and buffers, by name.
struct ModelSnapshot {
  std::int64_t step = 0;                 ///< Progress::step
  std::int64_t epoch = 0;                ///< Progress::epoch
  std::vector<io::NamedTensors> models;  ///< in the order in which they were prepared

  /// Copies the weights of model `index` into `module`, which stays on its device. Throws ConfigError when its
  /// parameters and buffers have other names or sizes.
  void load_into(torch::nn::Module& module, std::size_t index = 0) const;
};

/// `launch` for programs with an event loop: trains in the background, and is asked from outside to pause, stop, save
/// and show its weights.
///
///     tandem::Session session({.on_event = [](const tandem::SessionEvent& event) { … }});
///     session.start({.gpus = 2}, [](tandem::Accelerator& accelerator) { … });
///     …
///     session.request_stop();
///     session.wait();
///
/// Members may be called by any thread, in any order, any number of times, also by callbacks; by the body's own ranks
/// too, but for `start`, `wait`, `wait_for`, `evaluate_with` and the destructor. Unless it says otherwise none waits
/// for the training, and what has no meaning at the moment (pausing what is paused, stopping what has ended) has no
/// effect.
///
/// Ranks follow between micro-batches (accumulate) and between batches of prepared loaders, all at the same place. A
/// body with neither can only be cancelled.
///
/// With several machines (LaunchConfig::nodes) every node has a Session of its own. `progress`, events and `snapshot`
/// are of the node; `request_stop` on any one stops all at the same step, the first after a window in which all have
/// heard of it (not within join_uneven_inputs); `cancel` ends all, and the others have failed; `save_now` is node 0's;
/// `pause` is not there yet.
class Session {
 public:
  /// Starts nothing but the thread that hands out callbacks.
  explicit Session(SessionOptions options = {});

  /// Cancels, and waits until all threads have ended: no longer than `cancel` says. No callback runs afterwards, and
  /// one that runs is waited for, unless it is the caller. (Where the body owns the session it is destroyed on the
  /// thread that trained, which ends by itself then.)
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  /// Begins launch(config, body) on a thread of its own, and returns. Progress and errors of a training before are
  /// gone. Throws Error while one runs, and when the system has no more threads; ConfigError on a rank's thread. What
  /// is wrong with `config` comes out of `wait`.
  void start(LaunchConfig config, std::function<void(Accelerator&)> body);

  /// Has all ranks stand still, from the next micro-batch or batch on; with a batch in hand that is not used yet, from
  /// the place after it, where, unless a window is open, the state can be saved. `status` says when they do. Throws
  /// ConfigError with several machines.
  void pause(PauseOptions options = {});

  /// Lets ranks go on after `pause`.
  void resume();

  /// Ends training and lets the body end well: once the open window is closed, loops over loaders that train have no
  /// more batches, and Accelerator::stop_requested is true on all ranks. Evaluation and what else follows in the body
  /// runs: a body that goes on beginning epochs must look at stop_requested. The loader's place stays, so that a state
  /// which the body saves afterwards goes on in the middle of the epoch. Resumes what is paused.
  void request_stop();

  /// Ends the launch now, as a failure would: within 100 ms, but that a kernel or an operator, a read of a dataset and
  /// what else the body computes by itself must return first; so must what the launch does before its ranks begin, and
  /// a checkpoint that is being written in the background.
  void cancel();

  /// Saves the state as Accelerator::save_state(directory, options) does, between two steps; training goes on also when
  /// that fails. The future has what save_state returns, or the error: save_state's, or Error when the body ends
  /// before. With SaveStateOptions::background training goes on as soon as the state is copied, and the future has it
  /// when the copy is written. What is paused in the middle of a window or of an evaluation is saved after `resume`.
  std::future<std::string> save_now(const std::string& directory = {}, const SaveStateOptions& options = {});

  /// Saves the state likewise, and calls `done` once with the directory or the error, where callbacks are called.
  void save_now(const std::string& directory, const SaveStateOptions& options, SaveWritten done);

  /// The weights between two steps, while ranks stand still for the copy; once the body has ended well, those it ended
  /// with. The future has Error when there are none, or the session fails or is cancelled before.
  std::future<ModelSnapshot> snapshot();

  /// Takes a snapshot likewise, and gives it to `use` where callbacks are called. Where there is none, `otherwise` gets
  /// the error, if it is given.
  void snapshot(std::function<void(const ModelSnapshot&)> use,
                std::function<void(const std::exception_ptr&)> otherwise = {});

  /// Waits for a snapshot (which takes a step, and as long as a pause) and returns what `use` makes of it, on this
  /// thread. Throws what the future of `snapshot` has, what `use` throws, and ConfigError on a rank's thread.
  template <class Use>
  std::invoke_result_t<Use, const ModelSnapshot&> evaluate_with(Use&& use) {
    const ModelSnapshot weights = wait_for_snapshot();
    return use(weights);
  }

  /// Waits until the training has ended. Throws, each time, what launch would; nothing when it was cancelled, or none
  /// was started. Throws ConfigError on a rank's thread.
  void wait();

  /// Waits as `wait` does, at most `time`. Returns false when the training has not ended by then. Throws as `wait`.
  bool wait_for(std::chrono::nanoseconds time);

  /// What a session is doing, with what went wrong.
  struct Status {
    SessionState state = SessionState::idle;  ///< see SessionState
    std::string error{};                      ///< when failed: what wait throws, for people
  };

  /// The state now, and what went wrong. Takes a lock, for a moment.
  Status status() const;

  /// Consistent, and up to date to some 20 ms. Takes no lock and costs the training nothing.
  Progress progress() const noexcept;

 private:
  ModelSnapshot wait_for_snapshot();

  struct Shared;
  std::shared_ptr<Shared> shared_;  // also the thread's
};

}  // namespace tandem
