#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <unordered_set>
#include <utility>
#include <vector>

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>
#include <torch/optim/optimizer.h>

#include "tandem/data/data_loader.h"
#include "tandem/data/prepared_data_loader.h"
#include "tandem/io/model_files.h"
#include "tandem/nn/local_sgd.h"
#include "tandem/nn/model.h"
#include "tandem/nn/precision.h"
#include "tandem/runtime/checkpoint_options.h"
#include "tandem/runtime/compiled_step.h"
#include "tandem/runtime/prepared.h"
#include "tandem/runtime/profile.h"
#include "tandem/runtime/rank_handle.h"
#include "tandem/trace/range.h"

namespace tandem::nn {
struct ReducedGradient;
}

namespace tandem {

class Checkpoints;
class RankProfiler;

/// Options of a backward pass, as torch::Tensor::backward has them.
struct BackwardOptions {
  bool retain_graph = false;  ///< another backward through the same graph follows
  bool create_graph = false;  ///< the gradients are to be differentiated themselves
};

/// One rank's handle to the launch. `launch` makes one a rank and gives it to the body; it belongs to that thread. Who
/// the rank is and what ranks do together is in its base, RankHandle.
///
/// Members marked collective must be called by all ranks, in the same order. They throw CollectiveError when the ranks'
/// calls differ. Every member that waits throws Cancelled when another rank has failed.
class Accelerator : public RankHandle {
 public:
  /// `launch` calls it. `context` outlives it.
  explicit Accelerator(RankContext& context);
  ~Accelerator();

  /// Where the accumulation window stands.
  const GradientState& gradient_state() const { return context_.gradients; }

  /// True in the micro-batch that closes its accumulation window: optimizers, schedulers, clipping and zero_grad act.
  /// Backward passes are reduced then, but within no_sync.
  bool sync_gradients() const { return context_.gradients.closes_window(); }

  /// True once the host has asked a Session to end training well, and the open window is closed: from the same place on
  /// for all ranks. Loops over loaders have no more batches by then; this is for loops around them, and without them:
  ///
  ///     for (int epoch = 0; epoch < 90 && !accelerator.stop_requested(); ++epoch) …
  bool stop_requested() const;

  /// Tells a Session how many windows the training will have, for Progress::seconds_left. Outside of one it does
  /// nothing.
  void set_total_steps(std::int64_t steps);

  // ---- preparing

  /// Wraps models, optimizers, schedulers and data loaders, any number in any order, and returns them in that order.
  /// Collective.
  ///
  /// - a torch::nn::Module (holder or shared_ptr) becomes an nn::Model: moved to the device, given rank 0's parameters
  ///   and buffers. ConfigError names the first parameter that differs between ranks.
  /// - a torch::optim::Optimizer becomes an optim::AcceleratedOptimizer (which steps SGD, Adam and AdamW by
  ///   optim::FusedStep unless LaunchConfig::fused_optimizers is off), a scheduler (LRScheduler or reduce on plateau,
  ///   tandem::optim's or torch::optim's) an optim::AcceleratedScheduler; both keep referring to the object given,
  ///   which must outlive them.
  /// - a data::DataLoader becomes a data::PreparedDataLoader.
  /// - what prepare returned comes back as it is.
  ///
  /// The objects given stay usable: they are what is trained. Temporary optimizers and schedulers do not compile, since
  /// nothing would keep them. What prepare refuses it refuses on all ranks with the same error, and a body that catches
  /// it can go on. PreparedModel, PreparedOptimizer, PreparedScheduler and PreparedLoader name the results' types.
  template <class... Objects>
  auto prepare(Objects&&... objects) {
    (check_kept<Objects>(), ...);
    // Braces evaluate from left to right: every rank prepares in the same order.
    if constexpr (sizeof...(Objects) == 1)
      return prepare_one(objects...);
    else
      return std::tuple{prepare_one(objects)...};
  }

  // ---- a training step

  /// While alive, one micro-batch of the accumulation window.
  class [[nodiscard]] AccumulationStep {
   public:
    /// Begins the micro-batch; the destructor ends it. See accumulate().
    AccumulationStep(Accelerator& accelerator, bool close)
        : accelerator_(accelerator), recording_(accelerator.context_.gradients.records()), range_(trace::Event::step) {
      if (recording_)
        recording_->at_each_replay({.before = [&accelerator, close] { accelerator.begin_micro_batch(close); },
                                    .after = [&accelerator] { accelerator.end_micro_batch(); }});
      else
        accelerator.begin_micro_batch(close);
    }
    ~AccumulationStep() {
      range_.reset();  // before a profile may end with the step
      if (!recording_) accelerator_.end_micro_batch();
    }
    AccumulationStep(const AccumulationStep&) = delete;
    AccumulationStep& operator=(const AccumulationStep&) = delete;

   private:
    Accelerator& accelerator_;
    nn::Recording* const recording_;  // null: what the step does is done
    std::optional<trace::Range> range_;
  };

  /// Opens a micro-batch: every gradient_accumulation_steps-th one, and the last of a loader, closes the window.
  /// Within it backward, clipping, optimizer and scheduler act accordingly. It is that of all prepared models,
  /// whichever are named, here and in the following three: the arguments are there for the likeness to Accelerate. So a
  /// batch of several models, as a GAN's, is one micro-batch: two blocks in turn count as two of the window, and one
  /// within another throws ConfigError.
  template <class... Models>
  AccumulationStep accumulate(const Models&...) {
    return AccumulationStep(*this, false);
  }

  /// The same for a micro-batch that closes the window whatever its length.
  template <class... Models>
  AccumulationStep accumulate_and_close(const Models&...) {
    return AccumulationStep(*this, true);
  }

  /// Sets a flag while alive.
  class [[nodiscard]] FlagScope {
   public:
    /// Sets `flag`; the destructor sets it back.
    FlagScope(bool& flag, bool value) : flag_(flag), before_(std::exchange(flag, value)) {}
    ~FlagScope() { flag_ = before_; }
    FlagScope(const FlagScope&) = delete;
    FlagScope& operator=(const FlagScope&) = delete;

   private:
    bool& flag_;
    bool before_;
  };

  /// Says, while alive, whether backward passes are reduced. Of several, the innermost counts.
  class [[nodiscard]] ReductionScope {
   public:
    /// `reduces`: all passes are reduced; otherwise none. The destructor sets back what was before.
    ReductionScope(GradientState& state, bool reduces)
        : no_sync_(state.no_sync, !reduces), trigger_(state.trigger_sync, reduces) {}

   private:
    FlagScope no_sync_, trigger_;
  };

  /// Suspends the reduction of gradients for a scope: those of backward passes within it, also in micro-batches that
  /// are opened in it, stay with their rank, and are reduced with those of the next backward outside of it. Nothing
  /// else changes: windows close, optimizers step on what each rank has, zero_grad acts. After such a step ranks'
  /// weights differ, and updates are no longer divided over the ranks nor weights shared. With backward(loss_sum,
  /// items) a window that closes within the scope has the mean over this rank's items; outside of accumulate() the sums
  /// add up until the next backward outside of the scope. All ranks open it alike.
  template <class... Models>
  ReductionScope no_sync(const Models&...) {
    return {context_.gradients, false};
  }

  /// Has every backward within a scope reduce the gradients, also in a micro-batch that does not close its window. What
  /// was accumulated before is reduced with them. Optimizers go on waiting for the window.
  template <class... Models>
  ReductionScope trigger_sync_in_backward(const Models&...) {
    return {context_.gradients, true};
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

  /// Runs `body(local)`, within which each rank trains on its own and the models are averaged now and then:
  ///
  ///     accelerator.local_sgd(8, [&](nn::LocalSgd& local) {
  ///       for (auto& [images, labels] : batches) {
  ///         auto window = accelerator.accumulate(model);
  ///         accelerator.backward(loss_of(model(images), labels));
  ///         optimizer.step();
  ///         optimizer.zero_grad();
  ///         local.step();
  ///       }
  ///     });
  ///
  /// Backward passes are not reduced (not by trigger_sync_in_backward either), while windows, clipping, optimizers and
  /// schedulers go on as ever; backward(loss_sum, items) makes the mean over this rank's items, 0 where it has none.
  /// Every `steps`-th closed window, and when `body` ends, all ranks' prepared models become their average: see
  /// nn::LocalSgd. Gradients that no optimizer has used by then stay with their rank, and are reduced with those of the
  /// next backward. Updates are not divided over the ranks meanwhile; afterwards each part goes on with the optimizer
  /// state of the rank that updates it. Ranks close the same number of windows. Collective. Throws ConfigError when
  /// `steps` is below 1, and within local_sgd or join_uneven_inputs; CollectiveError when the ranks' `steps` differ.
  template <class Body>
  void local_sgd(int steps, Body&& body) {
    run_locally(steps, std::ref(body));
  }

  /// Scales the gradients so that their 2-norm (all parameters as one vector; or another p-norm) is at most `max_norm`,
  /// and returns the norm before: 0-dim, on the gradients' device (which they share), without waiting for it. An
  /// undefined tensor when !sync_gradients(): it acts only when the window closes, after the reduction, so that all
  /// ranks get the same norm. Infinite and NaN norms act as in PyTorch. A sparse gradient counts as the dense one that
  /// it stands for, and is scaled like the others. With one rank and fused_optimizers off, norm and scaled gradients
  /// are those of torch::nn::utils::clip_grad_norm_, to the bit. Unscales first (see unscale_gradients). Collective for
  /// prepared models on CPU ranks. Throws ConfigError under fp16 when a gradient belongs to no prepared optimizer.
  at::Tensor clip_grad_norm_(const std::vector<at::Tensor>& parameters, double max_norm, double norm_type = 2.0);

  /// The same for all parameters of a prepared model, or of the module that was prepared (holder or shared_ptr).
  template <nn::HasModule Module>
  at::Tensor clip_grad_norm_(const Module& model, double max_norm, double norm_type = 2.0) {
    return clip_grad_norm_(nn::parameters_of(model), max_norm, norm_type);
  }

  /// Limits each gradient value to [-limit, limit], in sparse gradients those of the dense one that it stands for. Acts
  /// only when sync_gradients(). Unscales first, and throws, as clip_grad_norm_. Throws ConfigError for a sparse
  /// gradient and a limit below 0, which would fill it.
  void clip_grad_value_(const std::vector<at::Tensor>& parameters, double limit);

  /// The same for all parameters of a prepared model, or of the module that was prepared (holder or shared_ptr).
  template <nn::HasModule Module>
  void clip_grad_value_(const Module& model, double limit) {
    clip_grad_value_(nn::parameters_of(model), limit);
  }

  /// What is called like `step`, and does the same. On GPUs it calls `step` three times, then has the device record
  /// what a call enqueues, as CUDA graphs, and from then on replays that for batches of the same sizes, without the
  /// host's work of launching each kernel: worth it where the host is slower than the GPU. With several ranks the
  /// gradients are reduced after backward, not during it. All ranks replay a call, or none does.
  ///
  ///     auto step = accelerator.compile_step([&](const at::Tensor& images, const at::Tensor& labels) {
  ///       auto window = accelerator.accumulate(model);
  ///       auto loss = torch::nn::functional::cross_entropy(model(images), labels);
  ///       accelerator.backward(loss);
  ///       optimizer.step();
  ///       optimizer.zero_grad();
  ///       return loss.detach();
  ///     });
  ///     for (auto& [images, labels] : batches) {
  ///       auto loss = step(images, labels);
  ///       scheduler.step();
  ///     }
  ///
  /// Of a step that is replayed only the device's work is done, accumulate(), what prepared optimizers and schedulers
  /// count, and learning rates (rounded to float32): other host code is not called (an ExponentialMovingAverage's
  /// update() belongs outside), and numbers, train() or eval(), autocast() and guards are those of the recorded call.
  /// Tensors from outside that the step uses must stay, and be changed in place. Results that stay on the device, such
  /// as a running loss, are best returned. Parameters, gradients and optimizers may be changed between calls: what a
  /// replay would not notice has the step recorded anew. Graphs have memory of their own, about as much as a step
  /// needs.
  ///
  /// A step that looks at a result (item(), a condition) or asks other ranks for anything but the reduction of
  /// gradients cannot be recorded. Then, and for batches of other sizes, it is called; CompiledStep::reason() says why.
  /// Steps are called always on CPU ranks, with accumulation over several micro-batches, under fp16, with divided
  /// updates, communication hooks or check_finite, and within join_uneven_inputs, local_sgd and no_sync. The result
  /// belongs to this rank's thread and does not outlive the accelerator. Collective, as calls of the result are.
  template <class Step>
  CompiledStep<std::decay_t<Step>> compile_step(Step&& step) {
    return {make_step_graph(), std::forward<Step>(step)};
  }

  // ---- mixed precision (LaunchConfig::mixed_precision; without it these change nothing)

  /// While alive, this thread's operators compute as in a prepared model's forward: for loss functions and what else is
  /// outside of it. Backward passes belong outside.
  nn::AutocastScope autocast() const {
    autocast_used_ = true;
    return nn::AutocastScope(device().type(), context_.state->config.mixed_precision);
  }

  /// What scales the losses under Precision::fp16; null otherwise. Its update comes once an iteration, however many
  /// optimizers share it: when the next window of accumulate() begins; outside of accumulate() with the first backward
  /// after a step. (Losses that are stepped one after the other and share an iteration belong in one accumulate().)
  optim::GradScaler* grad_scaler() { return prepared_.scaler ? &*prepared_.scaler : nullptr; }

  /// Divides the gradients of all prepared optimizers, or of one, by the scale, for code that looks at them between
  /// their last backward and the step. Once a window, where it has not been done; acts only when sync_gradients(). Not
  /// collective.
  void unscale_gradients();

  /// The same for one optimizer.
  void unscale_gradients(const optim::AcceleratedOptimizer& optimizer);

  /// True when the last step of a prepared optimizer was skipped because a gradient was infinite or NaN. The same on
  /// all ranks.
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
  /// next of LaunchConfig::checkpoints. Files are those of Accelerate, which Python opens, and tandem_state.json.
  /// Of an optimizer of a class of the program's: what its state() holds, by the states' serialize(), and what its
  /// save() writes. One with members that no save() writes is a ConfigError that says what to add, unless they are
  /// numbers that have not changed since it was prepared. (It is prepared as the class that it is: a
  /// torch::optim::Optimizer& hides them, which is a warning.) Returns the directory; an empty text when the save was
  /// left out (WhenBusy::skip).
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
  /// What the program sets counts, but for the options of the optimizers (learning rates and so on), which are those of
  /// the checkpoint unless `options` say otherwise. A schedule goes on as the program has made it now, at the step of
  /// the checkpoint: a cosine that has become longer gives the rate that the longer one has there. (LibTorch's own
  /// schedulers do not tell what they are: they are stepped as often, and the rates are the checkpoint's.) An
  /// optimizer's state goes to the parameters of the same names, where all have names in prepared models, and otherwise
  /// by position.
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

  /// The same for an object that is given as two functions.
  void register_state_object(StateObject object);

  /// Functions that give a checkpoint files of the program's own, called on rank 0, and take them back, called on all
  /// ranks. Either may be empty.
  void register_state_hooks(StateHooks hooks);

  // ---- random numbers

  /// Gives all ranks rank 0's state of these generators. (Loaders' own generators, RngType::generator, always agree.)
  /// Collective.
  void synchronize_rng_states(const std::vector<data::RngType>& types = {data::RngType::cpu});

  // ---- control

  /// Throws Error when gradients were infinite or NaN, waiting for what is not known yet: see
  /// nn::GradientReducerOptions::check_finite. The launch calls it when the body has ended.
  void throw_if_not_finite() {
    for (const auto& reducer : prepared_.reducers) reducer->throw_if_not_finite(true);
  }

  /// Returns when what this rank writes in the background is written; the launch calls it when the body has ended.
  /// Throws CheckpointError. Not collective.
  void finish_saving();

  /// Where this rank's memory is, as a sentence: bytes of the prepared models' parameters and gradients and of their
  /// optimizers' state, the largest parameters, and what is allocated on its GPU by all. Errors for lack of a GPU's
  /// memory have it, as of the moment when memory ran out.
  std::string memory_summary() const;

  /// Calls `body(batch_size)` with `start` and, as long as memory runs out on any rank (c10::OutOfMemoryError,
  /// std::bad_alloc or the CPU allocator's error leaves its body), on all ranks with half of it. Returns the size that
  /// all ranks finished with. Collective. Throws ConfigError when `start` is below 1, or when a batch of 1 does not
  /// fit; CollectiveError when the ranks' `start` differs.
  ///
  /// `body` makes model, optimizer and loaders itself, so that a failed try frees them. What it prepared is forgotten
  /// and the rank's window and generators are set back, so that a size trains as if it had been the first.
  ///
  /// Ranks learn of each other's lack of memory when their bodies have ended. `body` may make collective calls as long
  /// as all ranks run out at the same one: where a rank runs out alone, while others wait for it in a call, the launch
  /// ends with a CollectiveError that names that call and this one. Then start with a smaller size.
  std::int64_t find_executable_batch_size(std::int64_t start, const std::function<void(std::int64_t)>& body);

  /// Runs `body` and records what its ranks do: LibTorch's profiler writes one trace of all ranks for Perfetto or
  /// chrome://tracing, with a row a rank, the operators and Tandem's ranges (trace::Event), and the returned table says
  /// where the time went. Threads that only help, such as a loader's workers, are not in it. Works on CPU ranks too.
  /// When `body` fails, its exception goes on, and nothing is written. Collective; `body` is told of the steps by
  /// accumulate(). Throws ConfigError for steps that cannot be, for a directory that cannot be written to, and while
  /// the process records another profile; Error when LibTorch's profiler fails or the trace cannot be written.
  Profile profile(const ProfileOptions& options, const std::function<void()>& body);

 private:
  // What a rank says within join_uneven_inputs before each reduction, and each step with a scaler.
  enum class JoinState : std::uintptr_t { reduces_mean, reduces_items, agrees_on_step, has_ended };

  // The wrappers of optimizers and schedulers refer to what was given.
  template <class Object>
  static consteval void check_kept() {
    using Type = std::remove_cvref_t<Object>;
    static_assert(std::is_lvalue_reference_v<Object> || !std::is_base_of_v<torch::optim::Optimizer, Type>,
                  "prepare of a temporary optimizer, which would be gone when it is used: make it a variable, as "
                  "`torch::optim::AdamW adamw(net->parameters(), 1e-3);`, and give prepare that");
    static_assert(std::is_lvalue_reference_v<Object> || !(optim::UpdateScheduler<Type> || optim::MetricScheduler<Type>),
                  "prepare of a temporary scheduler, which would be gone when it is used: make it a variable, and give "
                  "prepare that");
    static_assert(!std::is_base_of_v<torch::nn::Module, Type>,
                  "prepare of a module that nothing keeps: give it a holder (TORCH_MODULE, as torch::nn::Linear) or a "
                  "std::shared_ptr to it");
  }

  template <class T>
  auto prepare_one(T& object) {
    using Type = std::remove_cv_t<T>;
    if constexpr (is_prepared<Type>) {
      return object;
    } else if constexpr (requires { typename Type::ContainedType; }) {  // a module holder
      return prepare_module(nn::module_of(object));
    } else if constexpr (data::detail::is_instance<Type, std::shared_ptr>) {
      static_assert(std::is_base_of_v<torch::nn::Module, typename Type::element_type>,
                    "prepare takes a shared_ptr to a torch::nn::Module; give other objects themselves");
      return prepare_module(object);
    } else if constexpr (std::is_base_of_v<torch::optim::Optimizer, Type>) {
      check_optimizer(object);
      optim::AcceleratedOptimizer optimizer(
          object, context_.gradients, context_.group->token(), context_.state->config.fused_optimizers, grad_scaler(),
          sharded(object), closure_steps(), optim::optimizer_class(object), [this, &object] { after_update(object); });
      prepared_.optimizers.emplace_back(optimizer);
      return optimizer;
    } else if constexpr (optim::UpdateScheduler<Type> || optim::MetricScheduler<Type>) {
      const int steps_per_update = context_.state->config.scheduler_steps_per_update;
      auto scheduler = [&] {
        if constexpr (optim::UpdateScheduler<Type>)
          return optim::AcceleratedScheduler(object, context_.gradients, steps_per_update, skipping_of(object));
        else
          return optim::AcceleratedScheduler(object, context_.gradients, steps_per_update);
      }();
      prepared_.schedulers.emplace_back(scheduler);
      return scheduler;
    } else {
      static_assert(data::detail::is_instance<Type, data::DataLoader>,
                    "prepare takes torch::nn modules (holder or shared_ptr), torch::optim optimizers, learning rate "
                    "schedulers and tandem::data::DataLoader");
      return data::PreparedDataLoader<typename Type::Batch>(prepare_loader(object.options(), object.any_dataset()));
    }
  }

  template <class Impl>
  nn::Model<Impl> prepare_module(const std::shared_ptr<Impl>& module) {
    return nn::Model<Impl>(module, reducer_of(module), device().type(), context_.state->config.mixed_precision);
  }

  template <class T>
  static constexpr bool is_prepared =
      data::detail::is_instance<T, nn::Model> || data::detail::is_instance<T, data::PreparedDataLoader> ||
      std::is_same_v<T, optim::AcceleratedOptimizer> || std::is_same_v<T, optim::AcceleratedScheduler>;

  // Tells whether the last step of the scheduler's optimizer was skipped. LibTorch's do not say whose it is.
  template <class Scheduler>
  std::function<bool()> skipping_of(const Scheduler& scheduler) const {
    if (!prepared_.scaler) return {};
    if constexpr (std::is_base_of_v<optim::Scheduler, Scheduler>)
      return [this, optimizer = &scheduler.optimizer()] { return step_was_skipped(optimizer); };
    else
      return [this] { return step_was_skipped(nullptr); };
  }

  std::shared_ptr<nn::GradientReducer> reducer_of(const std::shared_ptr<torch::nn::Module>& module);
  void tell_of_raw_forward();
  void check_optimizer(const torch::optim::Optimizer& optimizer);
  std::unique_ptr<optim::ShardedOptimizer> sharded(torch::optim::Optimizer& optimizer);
  optim::ClosureSteps closure_steps();
  at::Tensor evaluate(const optim::Closure& closure);
  void for_each_sharded(void (optim::ShardedOptimizer::*action)());
  void after_update(const torch::optim::Optimizer& optimizer);
  void tell_of_foreign_parameters(const torch::optim::Optimizer& optimizer);
  void lend_weights(nn::SharedWeights& weights);
  void go_on_apart();
  void go_on_together();
  void begin_micro_batch(bool close);
  void end_micro_batch() noexcept;
  std::shared_ptr<data::LoaderBase> prepare_loader(const data::DataLoaderOptions& options,
                                                   const data::detail::AnyDataset& dataset);
  at::Tensor scaled(const at::Tensor& loss);
  bool step_was_skipped(const torch::optim::Optimizer* optimizer) const;
  void unscale_gradients_of(const std::vector<at::Tensor>& parameters);
  void agree_on_step(at::Tensor& found_inf);
  bool clips_together(const nn::ReducedGradient& first) const;
  std::function<void()> undo_point();  // what it returns sets this rank back to now
  void scale_window(double factor);
  void save_module(const torch::nn::Module* module, const std::string& directory, const io::ModelFileOptions& options);
  void load_module(const std::shared_ptr<torch::nn::Module>& module, const std::string& directory);
  void check_between_updates();

  // ---- sessions
  friend class SessionRun;
  std::vector<std::shared_ptr<torch::nn::Module>> prepared_modules() const;
  std::string save_for_session(const std::string& directory, const SaveStateOptions& options,
                               const SaveWritten& written);

  std::unique_ptr<StepGraph> make_step_graph();
  std::optional<std::string> obstacle_to_recording() const;
  void record_reduction(nn::Recording& recording);
  void run_backward(const at::Tensor& loss, BackwardOptions options);
  void reduce_backward(const at::Tensor& loss, BackwardOptions options, int main);
  void begin_window_of_gradients();
  void end_window_of_pass();
  int main_of_pass(JoinState mine);
  double factor_over_items(double items, bool of_all_ranks);
  void run_locally(int steps, const std::function<void(nn::LocalSgd&)>& body);
  void run_unevenly(const std::function<void()>& body);
  void begin_join();
  void answer_until_all_have_ended();
  void take_over_from_last();
  int meet_in_join(JoinState mine);
  std::function<void()> rng_synchronisation();

  Prepared prepared_;
  std::unique_ptr<Checkpoints> checkpoints_;
  std::optional<std::int64_t> reductions_in_join_;  // of this rank, within join_uneven_inputs
  JoinState answered_{};                            // what the ranks that had not ended asked for last
  RankProfiler* profiler_ = nullptr;                // within profile
  mutable bool autocast_used_ = false;              // a scope of autocast() was made
  bool told_of_raw_forward_ = false;
  // For tell_of_foreign_parameters; null when gradients were told of that no reduction has averaged.
  std::unordered_set<const torch::optim::Optimizer*> looked_at_;
};

}  // namespace tandem
