// A plug-in for the tests of what a host sets.
#include <fstream>

#include <ATen/Context.h>
#include <ATen/Parallel.h>

#include "tandem/data/data_loader.h"
#include "tandem/data/tensor_dataset.h"
#include "tandem/runtime/trainings.h"
#include "tandem/session/session.h"

namespace {

// As many epochs as `options` says, of one batch each.
void count_epochs(tandem::Accelerator& accelerator, const std::string& options) {
  const auto epochs = std::stoll(options);
  auto loader = accelerator.prepare(tandem::data::DataLoader(tandem::data::TensorDataset(at::ones({2, 1}))));
  for (std::int64_t epoch = 0; epoch < epochs; ++epoch)
    for (auto& batch : loader) {
      static_cast<void>(batch);
      auto window = accelerator.accumulate();
    }
}

// The type that products of float32 come out in.
at::ScalarType computes_in(tandem::Accelerator& accelerator) {
  const auto scope = accelerator.autocast();
  return at::mm(at::ones({2, 2}), at::ones({2, 2})).scalar_type();
}

int number_of(const std::optional<bool>& choice) { return choice ? *choice : -1; }

void show_ranks(std::ostream& out, const tandem::AcceleratorState& state) {
  const tandem::LaunchConfig& config = state.config;
  out << "logical_ranks=" << state.logical_ranks() << "\nranks=" << state.world_size()
      << "\ntransport=" << static_cast<int>(config.transport) << "\ntf32=" << number_of(config.tf32)
      << at::globalContext().allowTF32CuBLAS() << "\nexpandable_segments=" << config.expandable_segments
      << "\nthreads_per_rank=" << config.threads_per_rank << at::get_num_threads()
      << "\npin_threads=" << config.pin_threads << "\nkeep_tensor_memory=" << config.keep_tensor_memory
      << "\ntimeout=" << config.timeout.count() << '\n';
}

void show_training(std::ostream& out, const tandem::LaunchConfig& config) {
  const auto& scaler = config.grad_scaler;
  out << "seed=" << config.seed << "\nmixed_precision=" << static_cast<int>(config.mixed_precision)
      << "\ninit_scale=" << scaler.init_scale << "\ngrowth_factor=" << scaler.growth_factor
      << "\nbackoff_factor=" << scaler.backoff_factor << "\ngrowth_interval=" << scaler.growth_interval
      << "\ndevice_placement=" << config.device_placement
      << "\ngradient_accumulation_steps=" << config.gradient_accumulation_steps
      << "\nsync_with_dataloader=" << config.sync_with_dataloader << "\nfused_optimizers=" << config.fused_optimizers
      << "\nsharding=" << static_cast<int>(config.sharding)
      << "\nscheduler_steps_per_update=" << config.scheduler_steps_per_update
      << "\ncheckpoint_directory=" << config.checkpoints.directory
      << "\ncheckpoint_limit=" << config.checkpoints.total_limit.value_or(0)
      << "\nnvtx_first=" << config.nvtx_capture.first << "\nnvtx_last=" << config.nvtx_capture.last << '\n';
}

void show_parts(std::ostream& out, const tandem::LaunchConfig& config) {
  const auto& reducer = config.gradient_reducer;
  const auto& loader = config.data_loader;
  out << "bucket_bytes=" << reducer.bucket_bytes << "\nfirst_bucket_bytes=" << reducer.first_bucket_bytes
      << "\ngradient_as_bucket_view=" << reducer.gradient_as_bucket_view
      << "\nshare_gradients=" << reducer.share_gradients << "\nbroadcast_buffers=" << reducer.broadcast_buffers
      << "\nstatic_graph=" << reducer.static_graph << "\ncheck_finite=" << reducer.check_finite
      << "\nsplit_batches=" << loader.split_batches << "\ndispatch_batches=" << number_of(loader.dispatch_batches)
      << "\neven_batches=" << loader.even_batches << "\nuse_seedable_sampler=" << loader.use_seedable_sampler
      << "\nnon_blocking=" << loader.non_blocking << "\nhas_data_seed=" << loader.data_seed.has_value()
      << "\ndata_seed=" << loader.data_seed.value_or(0) << "\nrng_types=";
  for (const auto type : loader.rng_types) out << static_cast<int>(type);
  out << '\n';
}

// A new field does not compile here until somebody has thought of its place in tandem/c.h, and in the tests of that.
void name_all_fields(const tandem::LaunchConfig& config) {
  [[maybe_unused]] const auto& [gpus, devices, cpu, seed, mixed_precision, grad_scaler, transport, tf32,
                                expandable_segments, not_in_c_backend, threads_per_rank, exact, pin_threads,
                                keep_tensor_memory, device_placement, gradient_accumulation_steps, sync_with_dataloader,
                                fused_optimizers, sharding, gradient_reducer, nvtx_capture, scheduler_steps_per_update,
                                data_loader, checkpoints, timeout, on_warning, cancel, not_in_c_nodes] = config;
  [[maybe_unused]] const auto& [init_scale, growth_factor, backoff_factor, growth_interval] = grad_scaler;
  [[maybe_unused]] const auto& [bucket_bytes, first_bucket_bytes, gradient_as_bucket_view, share_gradients,
                                broadcast_buffers, static_graph, check_finite] = gradient_reducer;
  [[maybe_unused]] const auto& [split_batches, dispatch_batches, even_batches, use_seedable_sampler, data_seed,
                                non_blocking, rng_types] = data_loader;
  [[maybe_unused]] const auto& [directory, total_limit, not_in_c_series] = checkpoints;
  [[maybe_unused]] const auto [not_in_c_executor, on_event, step_interval, every_epoch] = tandem::SessionOptions();
  [[maybe_unused]] const auto [background, when_busy, max_shard_bytes] = tandem::SaveStateOptions();
}

// Writes what it was started with, and what has come of it, to the file that `options` names.
void show(tandem::Accelerator& accelerator, const std::string& options) {
  if (!accelerator.is_main()) return;
  const tandem::LaunchConfig& config = accelerator.state().config;
  name_all_fields(config);
  std::ofstream out(options);
  show_ranks(out, accelerator.state());
  show_training(out, config);
  show_parts(out, config);
  out << "computes_in=" << computes_in(accelerator) << '\n';
  if (config.on_warning) config.on_warning("shown");
}

}  // namespace

extern "C" void register_settings_trainings() {
  tandem::register_training("epochs", count_epochs);
  tandem::register_training("show", show);
}
