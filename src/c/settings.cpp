#include "c/settings.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>

#include "tandem/core/error.h"

namespace tandem::c_interface {
namespace {

// Both count from the same first one.
static_assert(static_cast<int>(SessionState::failed) == TANDEM_FAILED);
static_assert(static_cast<int>(SessionEvent::Kind::failed) == TANDEM_EVENT_FAILED);
static_assert(static_cast<int>(Precision::fp16) == TANDEM_PRECISION_FP16);
static_assert(static_cast<int>(Transport::peer_memory) == TANDEM_TRANSPORT_PEER_MEMORY);
static_assert(static_cast<int>(Sharding::automatic) == TANDEM_SHARDING_AUTOMATIC);

// `value`, where it is one of `least` to `most`.
template <class Value>
Value checked(const char* field, Value value, Value least, Value most = std::numeric_limits<Value>::max()) {
  if (value < least || value > most)
    throw ConfigError(std::string(field) + " is " + std::to_string(value) + "; use " + std::to_string(least) +
                      (most == std::numeric_limits<Value>::max() ? " or more" : " to " + std::to_string(most)));
  return value;
}

bool flag(const char* field, std::int32_t value) { return checked(field, value, 0, 1) == 1; }

// -1: not said.
std::optional<bool> flag_or_nothing(const char* field, std::int32_t value) {
  return checked(field, value, -1, 1) < 0 ? std::nullopt : std::optional(value == 1);
}

std::optional<int> count_or_nothing(const char* field, std::int32_t value) {
  return checked(field, value, -1) < 0 ? std::nullopt : std::optional<int>(value);
}

template <class Enum>
Enum choice(const char* field, std::int32_t value, Enum last) {
  return static_cast<Enum>(checked(field, value, 0, static_cast<std::int32_t>(last)));
}

// Of a struct that this function knows by its name and its size.
template <class Struct>
void check_layout(const char* name, const Struct& given) {
  if (given.size != sizeof(Struct))
    throw ConfigError(std::string(name) + " has a size of " + std::to_string(given.size) + ", and not of " +
                      std::to_string(sizeof(Struct)) + "; call " + name + "_init first");
}

// Rounded up, so that what is above 0 stays so.
std::chrono::milliseconds milliseconds_of(const char* field, double seconds) {
  if (!(seconds >= 0)) throw ConfigError(std::string(field) + " is " + std::to_string(seconds) + " s; use 0 or more");
  constexpr double kLongest = 1e9;
  return std::chrono::ceil<std::chrono::milliseconds>(std::chrono::duration<double>(std::min(seconds, kLongest)));
}

nn::GradientReducerOptions to_reducer_options(const tandem_gradient_reducer& reducer) {
  checked("gradient_reducer.reserved", reducer.reserved, 0, 0);
  return {.bucket_bytes = static_cast<std::size_t>(reducer.bucket_bytes),
          .first_bucket_bytes = static_cast<std::size_t>(reducer.first_bucket_bytes),
          .gradient_as_bucket_view = flag("gradient_as_bucket_view", reducer.gradient_as_bucket_view),
          .share_gradients = flag("share_gradients", reducer.share_gradients),
          .broadcast_buffers = flag("broadcast_buffers", reducer.broadcast_buffers),
          .static_graph = flag("static_graph", reducer.static_graph),
          .check_finite = flag("check_finite", reducer.check_finite)};
}

data::DataLoaderConfiguration to_loader_configuration(const tandem_data_loaders& loaders) {
  using data::RngType;
  checked("data_loader.reserved", loaders.reserved, 0, 0);
  data::DataLoaderConfiguration configuration{
      .split_batches = flag("split_batches", loaders.split_batches),
      .dispatch_batches = flag_or_nothing("dispatch_batches", loaders.dispatch_batches),
      .even_batches = flag("even_batches", loaders.even_batches),
      .use_seedable_sampler = flag("use_seedable_sampler", loaders.use_seedable_sampler),
      .non_blocking = flag("non_blocking", loaders.non_blocking),
      .rng_types = {}};
  if (flag("has_data_seed", loaders.has_data_seed)) configuration.data_seed = loaders.data_seed;
  const std::int32_t types = checked("rng_types", loaders.rng_types, 0, 7);
  if (types & TANDEM_RNG_GENERATOR) configuration.rng_types.push_back(RngType::generator);
  if (types & TANDEM_RNG_CPU) configuration.rng_types.push_back(RngType::cpu);
  if (types & TANDEM_RNG_CUDA) configuration.rng_types.push_back(RngType::cuda);
  return configuration;
}

// Who trains on what.
void set_ranks(LaunchConfig& launch, const tandem_config& config) {
  launch.gpus = count_or_nothing("gpus", config.gpus);
  launch.cpu = count_or_nothing("cpu", config.cpu);
  constexpr std::size_t kMostDevices = 1024;
  if (checked<std::size_t>("device_count", config.device_count, 0, kMostDevices) > 0) {
    const std::int32_t* const first = &given(config.devices, "devices, with a device_count above 0,");
    launch.devices.assign(first, first + config.device_count);
  }
  launch.transport = choice("transport", config.transport, Transport::peer_memory);
  launch.tf32 = flag_or_nothing("tf32", config.tf32);
  launch.expandable_segments = flag("expandable_segments", config.expandable_segments);
  launch.threads_per_rank = checked("threads_per_rank", config.threads_per_rank, 0);
  if (const auto ranks = checked("logical_ranks", config.logical_ranks, 0); ranks > 0)
    launch.exact = ExactOptions{.logical_ranks = ranks};
  launch.pin_threads = flag("pin_threads", config.pin_threads);
  launch.keep_tensor_memory = flag("keep_tensor_memory", config.keep_tensor_memory);
}

// How they train.
void set_training(LaunchConfig& launch, const tandem_config& config) {
  const tandem_grad_scaler& scaler = config.grad_scaler;
  launch.seed = config.seed;
  launch.mixed_precision = choice("mixed_precision", config.mixed_precision, Precision::fp16);
  launch.grad_scaler = {scaler.init_scale, scaler.growth_factor, scaler.backoff_factor, scaler.growth_interval};
  launch.device_placement = flag("device_placement", config.device_placement);
  launch.gradient_accumulation_steps = config.gradient_accumulation_steps;
  launch.sync_with_dataloader = flag("sync_with_dataloader", config.sync_with_dataloader);
  launch.fused_optimizers = flag("fused_optimizers", config.fused_optimizers);
  launch.sharding = choice("sharding", config.sharding, Sharding::automatic);
  launch.gradient_reducer = to_reducer_options(config.gradient_reducer);
  launch.nvtx_capture = {checked<std::int64_t>("nvtx_first", config.nvtx_first, 0),
                         checked<std::int64_t>("nvtx_last", config.nvtx_last, 0)};
  launch.scheduler_steps_per_update = config.scheduler_steps_per_update;
  launch.data_loader = to_loader_configuration(config.data_loader);
}

tandem_gradient_reducer to_c(const nn::GradientReducerOptions& reducer) {
  return {.bucket_bytes = reducer.bucket_bytes,
          .first_bucket_bytes = reducer.first_bucket_bytes,
          .gradient_as_bucket_view = reducer.gradient_as_bucket_view,
          .share_gradients = reducer.share_gradients,
          .broadcast_buffers = reducer.broadcast_buffers,
          .static_graph = reducer.static_graph,
          .check_finite = reducer.check_finite,
          .reserved = 0};
}

tandem_data_loaders to_c(const data::DataLoaderConfiguration& loaders) {
  return {.split_batches = loaders.split_batches,
          .dispatch_batches = -1,
          .even_batches = loaders.even_batches,
          .use_seedable_sampler = loaders.use_seedable_sampler,
          .non_blocking = loaders.non_blocking,
          .has_data_seed = 0,
          .data_seed = 0,
          .rng_types = TANDEM_RNG_GENERATOR,
          .reserved = 0};
}

double seconds_of(std::chrono::milliseconds time) { return std::chrono::duration<double>(time).count(); }

}  // namespace

tandem_progress to_c(const Progress& progress) {
  return {.state = static_cast<std::int32_t>(progress.state),
          .reserved = 0,
          .epoch = progress.epoch,
          .step = progress.step,
          .epoch_step = progress.epoch_step,
          .epoch_steps = progress.epoch_steps,
          .total_steps = progress.total_steps,
          .loss = progress.loss,
          .steps_per_second = progress.steps_per_second,
          .seconds_left = progress.seconds_left};
}

LaunchConfig to_launch_config(const tandem_config& config) {
  check_layout("tandem_config", config);
  LaunchConfig launch;
  set_ranks(launch, config);
  set_training(launch, config);
  launch.checkpoints.directory = text_or_empty(config.checkpoint_directory);
  if (checked<std::int64_t>("checkpoint_limit", config.checkpoint_limit, 0) > 0)
    launch.checkpoints.total_limit = config.checkpoint_limit;
  launch.timeout = milliseconds_of("timeout", config.timeout);
  if (config.on_warning)
    launch.on_warning = [on_warning = config.on_warning, user = config.on_warning_user](const std::string& text) {
      on_warning(text.c_str(), user);
    };
  if (config.cancel) launch.cancel = config.cancel->source.get_token();
  return launch;
}

// Fields that LaunchConfig may leave open are left so.
tandem_config to_c(const LaunchConfig& launch) {
  const optim::GradScalerOptions& scaler = launch.grad_scaler;
  return {.size = sizeof(tandem_config),
          .gpus = -1,
          .cpu = -1,
          .seed = launch.seed,
          .gradient_accumulation_steps = launch.gradient_accumulation_steps,
          .sync_with_dataloader = launch.sync_with_dataloader,
          .checkpoint_directory = nullptr,
          .checkpoint_limit = 0,
          .devices = nullptr,
          .device_count = 0,
          .mixed_precision = static_cast<std::int32_t>(launch.mixed_precision),
          .transport = static_cast<std::int32_t>(launch.transport),
          .tf32 = -1,
          .expandable_segments = launch.expandable_segments,
          .grad_scaler = {scaler.init_scale, scaler.growth_factor, scaler.backoff_factor, scaler.growth_interval},
          .threads_per_rank = launch.threads_per_rank,
          .pin_threads = launch.pin_threads,
          .keep_tensor_memory = launch.keep_tensor_memory,
          .device_placement = launch.device_placement,
          .fused_optimizers = launch.fused_optimizers,
          .sharding = static_cast<std::int32_t>(launch.sharding),
          .scheduler_steps_per_update = launch.scheduler_steps_per_update,
          .logical_ranks = 0,
          .gradient_reducer = to_c(launch.gradient_reducer),
          .data_loader = to_c(launch.data_loader),
          .nvtx_first = launch.nvtx_capture.first,
          .nvtx_last = launch.nvtx_capture.last,
          .timeout = seconds_of(launch.timeout),
          .on_warning = nullptr,
          .on_warning_user = nullptr,
          .cancel = nullptr};
}

tandem_session_options to_c(const SessionOptions& options) {
  return {.size = sizeof(tandem_session_options),
          .on_event = nullptr,
          .user = nullptr,
          .step_interval = seconds_of(options.step_interval),
          .every_epoch = options.every_epoch,
          .reserved = 0};
}

tandem_save_options to_c(const SaveStateOptions& options) {
  return {.size = sizeof(tandem_save_options),
          .background = options.background,
          .skip_when_busy = options.when_busy == WhenBusy::skip,
          .max_shard_bytes = options.max_shard_bytes};
}

SessionOptions to_session_options(const tandem_session_options& options) {
  check_layout("tandem_session_options", options);
  checked("reserved", options.reserved, 0, 0);
  SessionOptions result;
  result.step_interval = milliseconds_of("step_interval", options.step_interval);
  result.every_epoch = flag("every_epoch", options.every_epoch);
  if (options.on_event)
    result.on_event = [on_event = options.on_event, user = options.user](const SessionEvent& event) {
      const tandem_event told{.kind = static_cast<std::int32_t>(event.kind),
                              .reserved = 0,
                              .left_out = event.left_out,
                              .progress = to_c(event.progress),
                              .text = event.text.c_str()};
      on_event(&told, user);
    };
  return result;
}

SaveStateOptions to_save_options(const tandem_save_options* options) {
  if (!options) return {};
  check_layout("tandem_save_options", *options);
  return {.background = flag("background", options->background),
          .when_busy = flag("skip_when_busy", options->skip_when_busy) ? WhenBusy::skip : WhenBusy::wait,
          .max_shard_bytes = options->max_shard_bytes};
}

}  // namespace tandem::c_interface
