#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <torch/nn/module.h>

#include "tandem/checkpoint/checkpoint_options.h"
#include "tandem/io/model_files.h"
#include "tandem/nn/gradient_state.h"
#include "tandem/nn/local_sgd.h"
#include "tandem/nn/model.h"
#include "tandem/nn/precision.h"
#include "tandem/optim/grad_scaler.h"
#include "tandem/runtime/backward_options.h"
#include "tandem/runtime/compiled_step.h"
#include "tandem/runtime/detail/preparation.h"
#include "tandem/runtime/micro_batch.h"
#include "tandem/runtime/prepared.h"
#include "tandem/runtime/profile.h"
#include "tandem/runtime/rank.h"

namespace tandem {

class RankTraining;

/// One rank's handle to the launch. `launch` makes one a rank and gives it to the body; it belongs to that thread. Who
/// the rank is and what ranks do together is in its base, Rank.
///
/// Members marked collective must be called by all ranks, in the same order. They throw CollectiveError when the ranks'
/// calls differ. Every member that waits throws Cancelled when another rank has failed.
class Accelerator : public Rank {
 public:
  /// `launch` calls it. `training` outlives it.
  explicit Accelerator(RankTraining& training);

  /// Where the accumulation window stands.
  const GradientState& gradient_state() const;

  /// True in the micro-batch that closes its accumulation window: optimizers, schedulers, clipping and zero_grad act.
  /// Backward passes are reduced then, but within no_sync.
  bool sync_gradients() const { return gradient_state().closes_window(); }

  /// True once the host has asked a Session to end training well, and the open window is closed: from the same place on
  /// for all ranks. Loops over loaders have no more batches by then; this is for loops around them, and without them:
  ///
  ///     for (int epoch = 0; epoch < 90 && !accelerator.stop_requested(); ++epoch) …
  bool stop_requested() const;

  /// Tells a Session how many windows the training will have, for Progress::seconds_left. Elsewhere it does nothing.
  void set_total_steps(std::int64_t steps);

  // ---- preparing

  /// Wraps any number of models, optimizers, schedulers and data loaders, and returns them in their order. Collective.
  /// The results' types are PreparedModel, PreparedOptimizer, PreparedScheduler and PreparedLoader (prepared.h); what
  /// prepare returned comes back as it is. The objects given stay usable: they are what is trained. Temporary
  /// optimizers and schedulers do not compile, since nothing would keep them. What prepare refuses it refuses on all
  /// ranks with the same error, and a body that catches it can go on.
  template <class... Objects>
  auto prepare(Objects&&... objects) {
    (detail::check_kept<Objects>(), ...);
    detail::Preparation preparation(training_, state());
    // Braces evaluate from left to right: every rank prepares in the same order.
    if constexpr (sizeof...(Objects) == 1)
      return preparation.prepare(objects...);
    else
      return std::tuple{preparation.prepare(objects)...};
  }

  // ---- a training step

  /// Opens a micro-batch: every gradient_accumulation_steps-th one, and the last of a loader, closes the window.
  /// Within it backward, clipping, optimizer and scheduler act accordingly. It is that of all prepared models, also
  /// where one is named, here and in the following three, as in Accelerate: two blocks in turn are two micro-batches,
  /// and one within another throws ConfigError.
  template <class... Models>
  MicroBatch accumulate(const Models&...) {
    return MicroBatch(training_, false);
  }

  /// Opens a micro-batch that closes the window, whatever its length.
  template <class... Models>
  MicroBatch accumulate_and_close(const Models&...) {
    return MicroBatch(training_, true);
  }

  /// Suspends the reduction of gradients for a scope: those of backward passes within it, also in micro-batches that
  /// are opened in it, stay with their rank, and are reduced with those of the next backward outside of it. All ranks
  /// open it alike. See ReductionScope.
  template <class... Models>
  ReductionScope no_sync(const Models&...) {
    return ReductionScope(window(), false);
  }

  /// Has every backward within a scope reduce the gradients, also in a micro-batch that does not close its window. What
  /// was accumulated before is reduced with them. Optimizers go on waiting for the window.
  template <class... Models>
  ReductionScope trigger_sync_in_backward(const Models&...) {
    return ReductionScope(window(), true);
  }

  /// Backward pass of `loss` (a mean over this rank's samples) divided by the accumulation steps; when the window
  /// closes, the gradients of all prepared models are averaged over the ranks. A shorter last window is divided by its
  /// own length; gradients that were kept from earlier windows stay as they are. Under Precision::fp16 the gradients
  /// are scaled (grad_scaler()) until clipping or the step. Collective when gradient_state().reduces(). Throws what
  /// autograd throws.
  void backward(const at::Tensor& loss, BackwardOptions options = {});

  /// Backward pass of `loss_sum`, a sum over `items` of this rank. When the window closes the gradients become the mean
  /// over all items of the window and of all ranks; what was kept from earlier windows stays as it is. A window has
  /// either form of backward (ConfigError), and this form once in the micro-batch that closes it. Collective when
  /// gradient_state().reduces(). Throws DataError when all ranks together have no items.
  void backward(const at::Tensor& loss_sum, double items, BackwardOptions options = {});

  /// Runs `body`, in which ranks may take different numbers of steps. A rank whose body has ended answers the gradient
  /// reductions of the others with zeros (the mean still divides by the world size) until all have ended, whatever its
  /// gradients were; what an unfinished window has added to them goes in with the first of these reductions. Afterwards
  /// all ranks have the weights, buffers, optimizer states and schedules of the rank that made the most reductions.
  /// Within `body` no other collective may be called, and no scheduler be given a metric that not all ranks give it
  /// (ConfigError). Collective.
  template <class Body>
  void join_uneven_inputs(Body&& body) {
    run_unevenly(std::ref(body));
  }

  /// Runs `body(local)`, in which each rank trains on its own and the models are averaged after every `steps`-th closed
  /// window, and when `body` ends: see nn::LocalSgd. Ranks close the same number of windows. Collective. Throws
  /// ConfigError when `steps` is below 1, and within local_sgd or join_uneven_inputs; CollectiveError when the ranks'
  /// `steps` differ.
  template <class Body>
  void local_sgd(int steps, Body&& body) {
    run_locally(steps, std::ref(body));
  }

  /// The mean of `value` over all micro-batches of the accumulation window and all ranks, weighted; nothing until the
  /// window closes. For what is logged of a window: in exact mode it is the same bits on any number of ranks, and with
  /// other collectives within a window nothing is. Each call in a micro-batch is about a value of its own, so make the
  /// same calls, in the same order, in each. Weights are 0 or more (ConfigError otherwise); a value of weight 0 does
  /// not count, and the mean of nothing is NaN. Waits for the device of a tensor. Collective where
  /// gradient_state().closes_window(), and not to be called within join_uneven_inputs.
  ///
  ///     if (const auto mean = accelerator.window_mean(loss)) std::cout << *mean << '\n';
  std::optional<double> window_mean(double value, double weight = 1);
  std::optional<double> window_mean(const at::Tensor& value, double weight = 1);  ///< of one element

  /// Scales the gradients so that their 2-norm (all parameters as one vector; or another p-norm) is at most `max_norm`,
  /// and returns the norm before: 0-dim, on the gradients' device (which they share), without waiting for it. An
  /// undefined tensor when !sync_gradients(): it acts only when the window closes, after the reduction, so that all
  /// ranks get the same norm. Infinite and NaN norms act as in PyTorch. A sparse gradient counts as the dense one that
  /// it stands for, and is scaled like the others. With one rank and fused_optimizers off, norm and scaled gradients
  /// are those of torch::nn::utils::clip_grad_norm_, to the bit. Unscales first (see unscale_gradients). Collective for
  /// prepared models on CPU ranks. Throws ConfigError under fp16 when a gradient belongs to no prepared optimizer.
  at::Tensor clip_grad_norm_(const std::vector<at::Tensor>& parameters, double max_norm, double norm_type = 2.0);

  /// Scales the gradients of a prepared model, or of the module that was prepared (holder or shared_ptr).
  template <nn::HasModule Module>
  at::Tensor clip_grad_norm_(const Module& model, double max_norm, double norm_type = 2.0) {
    return clip_grad_norm_(nn::parameters_of(model), max_norm, norm_type);
  }

  /// Limits each gradient value to [-limit, limit], in sparse gradients those of the dense one that it stands for. Acts
  /// only when sync_gradients(). Unscales first, and throws, as clip_grad_norm_. Throws ConfigError for a sparse
  /// gradient and a limit below 0, which would fill it.
  void clip_grad_value_(const std::vector<at::Tensor>& parameters, double limit);

  /// Limits the gradients of a prepared model, or of the module that was prepared (holder or shared_ptr).
  template <nn::HasModule Module>
  void clip_grad_value_(const Module& model, double limit) {
    clip_grad_value_(nn::parameters_of(model), limit);
  }

  /// Returns a callable that does what `step` does, on GPUs by CUDA graphs where that can be: see CompiledStep.
  /// Collective, as calls of the result are.
  template <class Step>
  CompiledStep<std::decay_t<Step>> compile_step(Step&& step, const CompileStepOptions& options = {}) {
    return {make_step_graph(options), std::forward<Step>(step)};
  }

  // ---- mixed precision (LaunchConfig::mixed_precision; without it these change nothing)

  /// While alive, this thread's operators compute as in a prepared model's forward: for loss functions and what else is
  /// outside of it. Backward passes belong outside.
  nn::AutocastScope autocast() const;

  /// What scales the losses under Precision::fp16; null otherwise. It is updated once an iteration, however many
  /// optimizers share it: when the next window of accumulate() begins, or outside of it with the first backward after a
  /// step.
  optim::GradScaler* grad_scaler();

  /// Divides the gradients of all prepared optimizers by the scale, for code that looks at them before the step. Once a
  /// window, where it has not been done; acts only when sync_gradients(). Not collective.
  void unscale_gradients();

  /// Divides the gradients of one prepared optimizer.
  void unscale_gradients(const optim::AcceleratedOptimizer& optimizer);

  /// True on all ranks when the last step of a prepared optimizer was skipped: a gradient was infinite or NaN.
  bool optimizer_step_was_skipped() const;

  // ---- files

  /// Writes the weights of a prepared model as the directory `directory`, in Hugging Face's layout: see io::save_model.
  /// The module itself (holder or shared_ptr) does as well. Rank 0 writes its own, and the others wait (no longer than
  /// LaunchConfig::timeout). Collective. Throws on all ranks what io::save_model throws; training can go on.
  template <nn::HasModule Module>
  void save_model(const Module& model, const std::string& directory, const io::ModelFileOptions& options = {}) {
    save_module(nn::module_of(model).get(), directory, options);
  }

  /// Gives a prepared model, on all ranks, the weights of `directory`, Tandem's or Python's: see io::load_model. The
  /// module that was prepared (holder or shared_ptr) does as well. Rank 0 reads. Optimizers keep what they know.
  /// Collective. Throws on all ranks what io::load_model throws; the model is as it was then.
  template <nn::HasModule Module>
  void load_model(const Module& model, const std::string& directory) {
    load_module(nn::module_of(model), directory);
  }

  /// Writes the state of the training as a checkpoint, from which `load_state` goes on to the bit: the prepared models,
  /// optimizers, schedulers and loaders (those that still exist), the scaler, each rank's default generators, what was
  /// registered below. `directory` is one of its own, that appears or is replaced as a whole; without one it is the
  /// next of LaunchConfig::checkpoints. Files are those of Accelerate, which Python opens, and tandem_state.json; see
  /// SaveStateOptions. Returns the directory; an empty text when the save was left out (WhenBusy::skip).
  ///
  /// To be called between two updates: in or after the micro-batch that closes a window. Rank 0 writes, and the others
  /// wait, but for saves in the background, whose errors come out of the next save_state, load_state or wait_for_saves,
  /// or of the launch. Collective. Throws on all ranks CheckpointError, after which training can go on and the
  /// checkpoints before are as they were, and ConfigError where a state cannot be saved.
  std::string save_state(const std::string& directory = {}, const SaveStateOptions& options = {});

  /// Goes on from the checkpoint `directory`, Tandem's or Accelerate's (which has no loaders' positions and generators
  /// for Tandem), also one of another number of ranks, with the same global batch: what was prepared and registered
  /// when it was saved is prepared and registered again, in the same order. Without a directory, from the newest one of
  /// LaunchConfig::checkpoints that is not damaged. Loaders go on in the middle of their epoch: the next loop over one
  /// has the rest of it. Gradients are dropped. Returns the directory.
  ///
  /// What the program sets counts, but for the options of the optimizers: see LoadStateOptions.
  ///
  /// Rank 0 reads. Collective. Throws on all ranks CheckpointError that names file and field, and ConfigError for
  /// another global batch; files are checked before anything is changed.
  std::string load_state(const std::string& directory = {}, const LoadStateOptions& options = {});

  /// Returns when what save_state began in the background is written. Collective. Throws CheckpointError.
  void wait_for_saves();

  /// Makes `object` a part of the state: an ExponentialMovingAverage, or anything with state_dict(), which gives a
  /// c10::IValue of None, numbers, texts, tensors and lists, tuples and dicts of them, and load_state_dict(state),
  /// which takes it. Rank 0's is saved, and all ranks load it. `object` outlives the last save or load.
  template <class Object>
  void register_for_checkpointing(Object& object) {
    register_state_object({.save = [&object]() -> c10::IValue { return object.state_dict(); },
                           .load = [&object](const c10::IValue& state) { object.load_state_dict(state); }});
  }

  /// Makes an object that is given as two functions a part of the state.
  void register_state_object(StateObject object);

  /// Functions that give a checkpoint files of the program's own, on rank 0, and take them back, on all ranks.
  void register_state_hooks(StateHooks hooks);

  // ---- random numbers

  /// Gives all ranks rank 0's state of these generators. (Loaders' own generators, RngType::generator, always agree.)
  /// Collective.
  void synchronize_rng_states(const std::vector<data::RngType>& types = {data::RngType::cpu});

  // ---- control

  /// Where this rank's memory is, as a sentence: bytes of parameters, gradients and optimizers' state, the largest
  /// parameters, and what is allocated on its GPU by all. Errors for lack of a GPU's memory have it.
  std::string memory_summary() const;

  /// Forgets all that was prepared and registered, and gives back, on all ranks, the memory that is kept for later
  /// tensors: for programs that train one thing after another in a launch. What the program itself still holds stays
  /// its own, and its models, optimizers, schedulers and loaders are as if they had never been prepared; what prepare
  /// returned for them is not to be used any more. Waits for saves in the background. To be called between two windows.
  /// Collective. Throws ConfigError on all ranks within a window, a loop over a loader or join_uneven_inputs.
  void free_memory();

  /// Calls `body(batch_size)` with `start` and, as long as memory runs out on any rank (c10::OutOfMemoryError,
  /// std::bad_alloc or the CPU allocator's error leaves its body), on all ranks with half of it. Returns the size that
  /// all ranks finished with. Collective. Throws ConfigError when `start` is below 1, or when a batch of 1 does not
  /// fit; CollectiveError when the ranks' `start` differs.
  ///
  /// `body` makes model, optimizer and loaders itself, so that a failed try frees them. What it prepared is forgotten
  /// and the rank's window and generators are set back, so that a size trains as if it had been the first. Ranks learn
  /// of each other's lack of memory when their bodies have ended. `body` may make collective calls as long as all ranks
  /// run out at the same one: where a rank runs out alone, while others wait for it in a call, the launch ends with a
  /// CollectiveError that names that call and this one. Then start with a smaller size.
  std::int64_t find_executable_batch_size(std::int64_t start, const std::function<void(std::int64_t)>& body);

  /// Runs `body` and records what its ranks do: LibTorch's profiler writes one trace of all ranks for Perfetto or
  /// chrome://tracing, with a row a rank, the operators and Tandem's ranges (trace::Event), and the returned table says
  /// where the time went. Threads that only help, such as a loader's workers, are not in it. Works on CPU ranks too.
  /// When `body` fails, its exception goes on, and nothing is written. Collective; `body` is told of the steps by
  /// accumulate(). Throws ConfigError for steps that cannot be, for a directory that cannot be written to, and while
  /// the process records another profile; Error when LibTorch's profiler fails or the trace cannot be written.
  Profile profile(const ProfileOptions& options, const std::function<void()>& body);

 private:
  nn::AccumulationWindow& window();
  std::unique_ptr<detail::StepGraph> make_step_graph(const CompileStepOptions& options);
  void run_unevenly(const std::function<void()>& body);
  void run_locally(int steps, const std::function<void(nn::LocalSgd&)>& body);
  void save_module(const torch::nn::Module* module, const std::string& directory, const io::ModelFileOptions& options);
  void load_module(const std::shared_ptr<torch::nn::Module>& module, const std::string& directory);

  RankTraining& training_;
};

}  // namespace tandem
