/** \file
 * Tandem for programs in C and for bindings of other languages: trains in the background of a host program.
 *
 * The training itself is written in C++ (tandem/runtime/trainings.h) and known by a name, or is a C function that does
 * its own work. No exception leaves a function of this file, and a C function that is called back must not throw
 * through it either. Functions that return a tandem_code may be called from any thread; what went wrong in the last
 * call that failed on this thread is tandem_last_error(). Texts are UTF-8.
 *
 * See tandem/session/session.h for what each request does and how long it takes; only tandem_session_wait,
 * _wait_for, _save, _snapshot and _free wait, which therefore do not belong on a rank's thread. A session calls back on
 * a thread of its own, one call at a time, and never after tandem_session_free; warnings alone come on ranks' threads.
 *
 * Where a function makes an object, its handle is NULL when it fails. Layouts of structs belong to the version (the
 * library's soname has major and minor): before a binding has one initialised, it compares tandem_version() with the
 * one that it was made for.
 */
#ifndef TANDEM_C_H
#define TANDEM_C_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/** How a call ended. */
typedef enum tandem_code {
  TANDEM_OK = 0,               /**< all went well */
  TANDEM_ERROR = 1,            /**< none of those below */
  TANDEM_CONFIG_ERROR = 2,     /**< an argument does not fit */
  TANDEM_DATA_ERROR = 3,       /**< data is missing or damaged */
  TANDEM_COLLECTIVE_ERROR = 4, /**< the ranks did not act alike */
  TANDEM_CHECKPOINT_ERROR = 5, /**< a file cannot be written or read */
  TANDEM_CANCELLED = 6,        /**< the training is being ended */
  TANDEM_RANK_ERROR = 7,       /**< the training has failed: a rank threw */
  TANDEM_NOT_YET = 8           /**< tandem_session_wait_for: it goes on */
} tandem_code;

/** What the last call that failed on this thread said; "" before. Valid until the next call that fails on it. */
const char* tandem_last_error(void);

/** The version of the library, such as "0.1.0". */
const char* tandem_version(void);

/* ---- trainings */

/** One rank of a training that runs; of its thread. */
typedef struct tandem_rank tandem_rank;

/** The body of a training, called once on each rank's thread. Returns 0, or anything else when it has failed, after
 * tandem_rank_fail. */
typedef int (*tandem_training)(tandem_rank* rank, const char* options, void* user);

/** Makes a function known under a name. It and `user`, which it is given, outlive all its trainings. */
tandem_code tandem_register_training(const char* name, tandem_training training, void* user);

/** Which rank it is, from 0; -1 for NULL. */
int32_t tandem_rank_index(const tandem_rank* rank);

/** How many ranks there are; -1 for NULL. */
int32_t tandem_rank_world_size(const tandem_rank* rank);

/** The number of its GPU; -1 on the CPU, and for NULL. */
int32_t tandem_rank_device(const tandem_rank* rank);

/** A step of the training: between two of them all ranks can be paused, stopped and cancelled. Collective. Returns
 * TANDEM_CANCELLED when the function is to return at once. */
tandem_code tandem_rank_step(tandem_rank* rank);

/** Nonzero once the host has asked for a good end, on all ranks after the same step. */
int tandem_rank_stop_requested(const tandem_rank* rank);

/** How many steps there will be. */
void tandem_rank_set_total_steps(tandem_rank* rank, int64_t steps);

/** Says why the function is about to return something else than 0. */
void tandem_rank_fail(tandem_rank* rank, const char* why);

/* ---- sessions */

/** A training in the background of the program; see tandem::Session. */
typedef struct tandem_session tandem_session;

/** What a session is doing; see tandem::SessionState. */
typedef enum tandem_state {
  TANDEM_IDLE = 0,
  TANDEM_STARTING = 1,
  TANDEM_RUNNING = 2,
  TANDEM_PAUSING = 3,
  TANDEM_PAUSED = 4,
  TANDEM_STOPPING = 5,
  TANDEM_ENDED = 6,
  TANDEM_CANCELLED_STATE = 7,
  TANDEM_FAILED = 8
} tandem_state;

/** Where a session's training is; see tandem::Progress for units and for what is not known. */
typedef struct tandem_progress {
  int32_t state;        /**< a tandem_state */
  int32_t reserved;     /**< 0 */
  int64_t epoch,        /**< of the loader that rank 0 took a batch from last, from 0 */
      step,             /**< accumulation windows that rank 0 has closed */
      epoch_step,       /**< batches of the epoch that rank 0 has taken */
      epoch_steps,      /**< batches that it has; -1: not known */
      total_steps;      /**< as the training has said; -1: not known */
  double loss,          /**< of rank 0's last micro-batch; NaN: none yet */
      steps_per_second, /**< smoothed over a few seconds, without pauses */
      seconds_left;     /**< to total_steps, or else to the end of the epoch; -1: not known */
} tandem_progress;

/** What has happened; see tandem::SessionEvent::Kind. */
typedef enum tandem_event_kind {
  TANDEM_EVENT_STARTED = 0,
  TANDEM_EVENT_STEP = 1,
  TANDEM_EVENT_EPOCH = 2,
  TANDEM_EVENT_PAUSED = 3,
  TANDEM_EVENT_RESUMED = 4,
  TANDEM_EVENT_SAVED = 5,
  TANDEM_EVENT_SAVE_FAILED = 6,
  TANDEM_EVENT_ENDED = 7,
  TANDEM_EVENT_CANCELLED = 8,
  TANDEM_EVENT_FAILED = 9
} tandem_event_kind;

/** Something that has happened to a session; see tandem::SessionEvent. */
typedef struct tandem_event {
  int32_t kind;             /**< a tandem_event_kind */
  int32_t reserved;         /**< 0 */
  int64_t left_out;         /**< events of this kind that came before it and were not delivered */
  tandem_progress progress; /**< where the training was then */
  const char* text;         /**< the directory of a save, or what went wrong; "" otherwise. Valid within the callback */
} tandem_event;

/** Is called with events. */
typedef void (*tandem_on_event)(const tandem_event* event, void* user);

/** Number format of forward passes; see tandem::Precision. */
typedef enum tandem_precision {
  TANDEM_PRECISION_NO = 0, /**< as the model has it */
  TANDEM_PRECISION_BF16 = 1,
  TANDEM_PRECISION_FP16 = 2
} tandem_precision;

/** How GPU ranks exchange data; see tandem::Transport. */
typedef enum tandem_transport {
  TANDEM_TRANSPORT_AUTOMATIC = 0,
  TANDEM_TRANSPORT_NCCL = 1,
  TANDEM_TRANSPORT_PEER_MEMORY = 2
} tandem_transport;

/** What ranks have in common; see tandem::Sharding. */
typedef enum tandem_sharding {
  TANDEM_SHARDING_NONE = 0,
  TANDEM_SHARDING_OPTIMIZER = 1,
  TANDEM_SHARDING_AUTOMATIC = 2
} tandem_sharding;

/** Bits of tandem_data_loaders::rng_types; see tandem::data::RngType. */
typedef enum tandem_rng_type { TANDEM_RNG_GENERATOR = 1, TANDEM_RNG_CPU = 2, TANDEM_RNG_CUDA = 4 } tandem_rng_type;

/** Loss scaling under TANDEM_PRECISION_FP16; see tandem::optim::GradScalerOptions. */
typedef struct tandem_grad_scaler {
  double init_scale;       /**< above 0 */
  double growth_factor;    /**< above 1 */
  double backoff_factor;   /**< above 0, below 1 */
  int64_t growth_interval; /**< iterations in a row without overflow; 1 or more */
} tandem_grad_scaler;

/** How gradients are reduced; see tandem::nn::GradientReducerOptions. */
typedef struct tandem_gradient_reducer {
  uint64_t bucket_bytes;           /**< gradients are reduced in buckets of about that size */
  uint64_t first_bucket_bytes;     /**< of the first one */
  int32_t gradient_as_bucket_view; /**< gradients are views of the buckets' memory; 0 or 1 */
  int32_t share_gradients;         /**< those of CPU ranks are one memory; 0 or 1 */
  int32_t broadcast_buffers;       /**< buffers become rank 0's; 0 or 1 */
  int32_t static_graph;            /**< a promise that every pass reaches the same parameters; 0 or 1 */
  int32_t check_finite;            /**< infinite and NaN gradients are an error; 0 or 1 */
  int32_t reserved;                /**< 0 */
} tandem_gradient_reducer;

/** How loaders divide their data; see tandem::data::DataLoaderConfiguration. */
typedef struct tandem_data_loaders {
  int32_t split_batches;        /**< a loader's batch size is that of all ranks together; 0 or 1 */
  int32_t dispatch_batches;     /**< rank 0 reads for all; 0 or 1, or -1: for iterable datasets only */
  int32_t even_batches;         /**< samples are repeated so that all ranks get as many; 0 or 1 */
  int32_t use_seedable_sampler; /**< epoch e is shuffled from seed + e; 0 or 1 */
  int32_t non_blocking;         /**< batches go to a GPU on a stream of their own; 0 or 1 */
  int32_t has_data_seed;        /**< 1: loaders without a seed have data_seed; 0: the master seed */
  uint64_t data_seed;           /**< see has_data_seed */
  int32_t rng_types;            /**< tandem_rng_types, added up, whose states become rank 0's at each epoch */
  int32_t reserved;             /**< 0 */
} tandem_data_loaders;

/** Is called with what is worth knowing but is no error, on ranks' threads, one call at a time. The text is valid
 * within the call. */
typedef void (*tandem_on_warning)(const char* text, void* user);

/** A request to end any number of trainings; see LaunchConfig::cancel. */
typedef struct tandem_cancel tandem_cancel;

/** Free it with tandem_cancel_free. */
tandem_code tandem_cancel_new(tandem_cancel** cancel);

/** Cancels all trainings that were started with it, and that will be. */
tandem_code tandem_cancel_request(tandem_cancel* cancel);

/** Frees it. Trainings that were started with it go on. NULL is allowed. */
void tandem_cancel_free(tandem_cancel* cancel);

/** What to train on, and how; see tandem::LaunchConfig, whose fields these are. What they point to is read by
 * tandem_session_start, and may go afterwards. It returns TANDEM_CONFIG_ERROR for what is no value of a field;
 * tandem_session_wait does for what does not fit the machine or each other. */
typedef struct tandem_config {
  size_t size;  /**< of this struct, as tandem_config_init sets it: a binding with another layout is told so */
  int32_t gpus; /**< the first `gpus` GPUs, a rank each; -1: not asked for */
  int32_t cpu;  /**< that many ranks on the CPU; -1: not asked for. With no devices either: all GPUs, or else the CPU */
  uint64_t seed;                       /**< master seed */
  int32_t gradient_accumulation_steps; /**< micro-batches an optimizer update */
  int32_t sync_with_dataloader;        /**< the end of a loader closes the accumulation window; 0 or 1 */
  const char* checkpoint_directory;    /**< where tandem_session_save without a directory saves; may be NULL */
  int64_t checkpoint_limit;            /**< of checkpoints there; 0: none */
  const int32_t* devices;              /**< GPUs by their numbers, a rank each; may be NULL */
  size_t device_count;                 /**< how many `devices` has, up to 1024; 0: not asked for */
  int32_t mixed_precision;             /**< a tandem_precision */
  int32_t transport;                   /**< a tandem_transport */
  int32_t tf32;                        /**< float32 products of GPUs are in TF32; 0, 1, or -1: as LibTorch is set */
  int32_t expandable_segments;         /**< of LibTorch's allocator for GPUs, from then on; 0 or 1 */
  tandem_grad_scaler grad_scaler;      /**< of mixed precision */
  int32_t threads_per_rank;            /**< intra-op threads of a CPU rank, up to 1024; 0: cores / ranks */
  int32_t pin_threads;                 /**< ranks are bound to their share of the cores; 0 or 1 */
  int32_t keep_tensor_memory;          /**< CPU tensors reuse the memory of those before them; 0 or 1 */
  int32_t device_placement;            /**< models and batches are moved to the rank's device; 0 or 1 */
  int32_t fused_optimizers;            /**< SGD, Adam and AdamW step in one pass; 0 or 1 */
  int32_t sharding;                    /**< a tandem_sharding */
  int32_t scheduler_steps_per_update;  /**< inner scheduler steps an update */
  int32_t logical_ranks;               /**< of exact mode, a power of two; 0: no exact mode */
  tandem_gradient_reducer gradient_reducer; /**< of prepared models */
  tandem_data_loaders data_loader;          /**< of prepared loaders */
  int64_t nvtx_first;                       /**< the first update that tools shall capture */
  int64_t nvtx_last;                        /**< the last one; 0: none */
  double timeout;                           /**< longest wait of a rank for another, s */
  tandem_on_warning on_warning;             /**< may be NULL: warnings are silent */
  void* on_warning_user;                    /**< that it is given */
  const tandem_cancel* cancel;              /**< ends the training from outside; may be NULL */
} tandem_config;

/** Sets the size, and the defaults of tandem::LaunchConfig. To be called before anything else is set. */
void tandem_config_init(tandem_config* config);

/** Callbacks of a session; see tandem::SessionOptions. */
typedef struct tandem_session_options {
  size_t size;              /**< of this struct, as tandem_session_options_init sets it */
  tandem_on_event on_event; /**< may be NULL */
  void* user;               /**< that it is given */
  double step_interval;     /**< between two events of steps, s; 0 or more */
  int32_t every_epoch;      /**< each epoch has its event, however short, and none is left out; 0 or 1 */
  int32_t reserved;         /**< 0 */
} tandem_session_options;

/** Sets the size and the defaults. To be called before anything else is set. */
void tandem_session_options_init(tandem_session_options* options);

/** `on_event` may be NULL. Free it with tandem_session_free. */
tandem_code tandem_session_new(tandem_on_event on_event, void* user, tandem_session** session);

/** Makes a session with options. Free it with tandem_session_free. */
tandem_code tandem_session_new_with(const tandem_session_options* options, tandem_session** session);

/** Cancels, and waits until all threads have ended. No callback comes afterwards. NULL is allowed. On a
 * rank's thread nothing is freed (TANDEM_CONFIG_ERROR). */
tandem_code tandem_session_free(tandem_session* session);

/** Begins the training that is known as `training`, with `options` (may be NULL), and returns. */
tandem_code tandem_session_start(tandem_session* session, const char* training, const char* options,
                                 const tandem_config* config);

/** Has all ranks stand still from the next step on. With a nonzero `release_memory`, memory that is kept for reuse goes
 * back to the devices. */
tandem_code tandem_session_pause(tandem_session* session, int release_memory);

/** Lets them go on. */
tandem_code tandem_session_resume(tandem_session* session);

/** Ends training and lets the function end well: tandem_rank_stop_requested tells it. */
tandem_code tandem_session_request_stop(tandem_session* session);

/** Ends the training now, as a failure would. */
tandem_code tandem_session_cancel(tandem_session* session);

/** Returns when the training has ended: TANDEM_OK also when it was cancelled, else what went wrong. */
tandem_code tandem_session_wait(tandem_session* session);

/** Waits as tandem_session_wait does, but returns TANDEM_NOT_YET when the training has not ended within `seconds`, 0 or
 * more. */
tandem_code tandem_session_wait_for(tandem_session* session, double seconds);

/** Writes where the training is to `*progress`. Takes no lock. */
tandem_code tandem_session_progress(const tandem_session* session, tandem_progress* progress);

/** What tandem_session_wait returns in words, when the state is TANDEM_FAILED: writes it to `text`, cut off at
 * `capacity` bytes with the 0 at its end, and the bytes it needs to `*needed`, unless that is NULL. */
tandem_code tandem_session_error(const tandem_session* session, char* text, size_t capacity, size_t* needed);

/** Saves the state between two steps, and waits for that; while the training is paused in the middle of a window, until
 * it goes on. `directory` may be NULL: the next of a series. Its path goes to `path` as in tandem_session_error, and to
 * TANDEM_EVENT_SAVED; `path` may be NULL with a capacity of 0. Each call saves. */
tandem_code tandem_session_save(tandem_session* session, const char* directory, char* path, size_t capacity,
                                size_t* needed);

/** How a state is saved; see tandem::SaveStateOptions. */
typedef struct tandem_save_options {
  size_t size;              /**< of this struct, as tandem_save_options_init sets it */
  int32_t background;       /**< training goes on as soon as the state is copied; 0 or 1 */
  int32_t skip_when_busy;   /**< left out while the one before is still being written in the background; 0 or 1 */
  uint64_t max_shard_bytes; /**< of a file of weights */
} tandem_save_options;

/** Sets the size and the defaults. To be called before anything else is set. */
void tandem_save_options_init(tandem_save_options* options);

/** Is called when a save has ended: `text` is the directory ("" where it was left out), or with another code than
 * TANDEM_OK what went wrong. Valid within the call. */
typedef void (*tandem_on_saved)(tandem_code code, const char* text, void* user);

/** Saves as tandem_session_save does, and returns at once. `directory`, `options` and `on_saved` may be NULL;
 * `on_saved` is called once, unless the session is freed before. */
tandem_code tandem_session_begin_save(tandem_session* session, const char* directory,
                                      const tandem_save_options* options, tandem_on_saved on_saved, void* user);

/* ---- weights */

/** The weights of a moment; see tandem::ModelSnapshot. */
typedef struct tandem_snapshot tandem_snapshot;

/** Type of a tensor's elements. */
typedef enum tandem_type {
  TANDEM_OTHER = 0, /**< none of those below */
  TANDEM_FLOAT32 = 1,
  TANDEM_FLOAT64 = 2,
  TANDEM_FLOAT16 = 3,
  TANDEM_BFLOAT16 = 4,
  TANDEM_INT64 = 5,
  TANDEM_INT32 = 6,
  TANDEM_UINT8 = 7,
  TANDEM_BOOL = 8
} tandem_type;

/** A parameter or buffer, contiguous in the CPU's memory. All pointers are the snapshot's. */
typedef struct tandem_tensor {
  const char* name;     /**< the module's name for it */
  const void* data;     /**< its elements, row by row */
  const int64_t* shape; /**< sizes, one a dimension */
  int32_t dims;         /**< how many sizes */
  int32_t type;         /**< a tandem_type */
  size_t bytes;         /**< of the elements together */
} tandem_tensor;

/** Waits for the weights between two steps; after a good end, those it ended with. Of a training that has prepared no
 * model there are none: it waits for its end then, and fails. Free them with tandem_snapshot_free. */
tandem_code tandem_session_snapshot(tandem_session* session, tandem_snapshot** snapshot);

/** Is given a snapshot, which is its own to free; or NULL, with another code than TANDEM_OK and what went wrong. The
 * text is valid within the call. */
typedef void (*tandem_on_snapshot)(tandem_code code, tandem_snapshot* snapshot, const char* text, void* user);

/** Asks for the weights as tandem_session_snapshot does, and returns at once. `on_snapshot` is called once, unless the
 * session is freed before. */
tandem_code tandem_session_begin_snapshot(tandem_session* session, tandem_on_snapshot on_snapshot, void* user);

/** Frees it; NULL is allowed. Tensors that were given as DLManagedTensor stay. */
void tandem_snapshot_free(tandem_snapshot* snapshot);

/** The step after which the weights were copied (tandem_progress::step); -1 for NULL. */
int64_t tandem_snapshot_step(const tandem_snapshot* snapshot);

/** The epoch in which they were copied (tandem_progress::epoch); -1 for NULL. */
int64_t tandem_snapshot_epoch(const tandem_snapshot* snapshot);

/** How many models it has; 0 for NULL. */
size_t tandem_snapshot_models(const tandem_snapshot* snapshot);

/** How many tensors model `model` (from 0) has; 0 where there is no such model. */
size_t tandem_snapshot_tensors(const tandem_snapshot* snapshot, size_t model);

/** Writes tensor `index` (from 0) of model `model` to `*tensor`. TANDEM_CONFIG_ERROR when there is no such one. */
tandem_code tandem_snapshot_tensor(const tandem_snapshot* snapshot, size_t model, size_t index, tandem_tensor* tensor);

struct DLManagedTensor;

/** Gives the tensor as a DLManagedTensor (dlpack.h), which shares the memory and may outlive the snapshot: its deleter
 * frees it. */
tandem_code tandem_snapshot_dlpack(const tandem_snapshot* snapshot, size_t model, size_t index,
                                   struct DLManagedTensor** tensor);

#ifdef __cplusplus
}
#endif
#endif
