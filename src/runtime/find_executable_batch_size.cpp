#include <algorithm>
#include <new>

#include <c10/util/Exception.h>

#include "backend/device_memory.h"
#include "backend/rank_memory.h"
#include "comm/agree.h"
#include "runtime/rank_training.h"
#include "runtime/step_observer.h"
#include "tandem/core/error.h"
#include "tandem/runtime/accelerator.h"

namespace tandem {
namespace {

// Whether the exception that is being handled says that memory ran out.
bool out_of_memory() {
  try {
    throw;
  } catch (const SampleError& error) {  // a dataset's
    try {
      error.rethrow_nested();
    } catch (...) {
      return out_of_memory();
    }
  } catch (const c10::OutOfMemoryError&) {
    return true;
  } catch (const std::bad_alloc&) {
    return true;
  } catch (const c10::Error& error) {
    // LibTorch's CPU allocator has no type for it.
    return error.msg().find("DefaultCPUAllocator: ") != std::string::npos;
  } catch (...) {
    return false;
  }
}

bool runs_out_of_memory(const std::function<void(std::int64_t)>& body, std::int64_t batch_size) {
  try {
    body(batch_size);
  } catch (...) {
    if (!out_of_memory()) throw;
    return true;
  }
  return false;
}

}  // namespace

std::int64_t Accelerator::find_executable_batch_size(std::int64_t start,
                                                     const std::function<void(std::int64_t)>& body) {
  const comm::CallRecord record{.operation = "find_executable_batch_size"};
  comm::agree(
      *context_.group, rank(), record,
      {.signature = static_cast<std::uint64_t>(start),
       .refusal = comm::refusal_of([&] {
         if (start < 1)
           throw ConfigError("batch size " + std::to_string(start) + " to start from is too small; use 1 or more");
       }),
       .describe = [&] { return "find_executable_batch_size from " + std::to_string(start); }});
  const auto undo = training_.undo_point();
  int failed = -1;
  for (std::int64_t size = start; size > 0; size /= 2) {
    const bool mine_failed = runs_out_of_memory(body, size);
    const auto all = context_.group->meet(rank(), record, mine_failed ? 1 : 0);
    const auto first = std::find_if(all.begin(), all.end(), [](std::uint64_t set) { return set != 0; });
    if (first == all.end()) return size;
    failed = static_cast<int>(first - all.begin());
    context_.communicator->forget_started();  // by bodies that ended in a backward pass
    context_.group->meet(rank(), record);
    undo();
    if (context_.observer) context_.observer->come_back();  // bodies have ended at different steps
    free_rank_memory();                                     // of sizes that are not wanted again
    context_.group->meet(rank(), record);
    if (context_.local_rank() == 0)
      free_device_memory(device());  // on all devices, before a rank may wait for another on one
    context_.group->meet(rank(), record);
  }
  throw ConfigError("no batch size fits: rank " + std::to_string(failed) + " ran out of memory with 1 too");
}

void Accelerator::free_memory() {
  const comm::CallRecord record{.operation = "free_memory"};
  const nn::AccumulationWindow& window = context_.window;
  const bool is_free = window.is_between() && window.loaders().all().empty() && !training_.join.active();
  comm::agree(
      *context_.group, rank(), record,
      {.refusal = comm::refusal_of([&] {
         if (!is_free)
           throw ConfigError(
               "free_memory() within an accumulation window, a loop over a loader or join_uneven_inputs; call it "
               "when they have ended");
       }),
       .describe = [] { return std::string("free_memory"); }});
  wait_for_saves();
  training_.forget_parts({});
  free_rank_memory();
  context_.group->meet(rank(), record);  // each rank has given up what lies on its device
  if (context_.local_rank() == 0) free_device_memory(device());
  context_.group->meet(rank(), record);
}

RankTraining::PartCounts RankTraining::part_counts() {
  const auto& registered = checkpoints.registered();
  return {.models = parts.reducers.size(),
          .optimizers = parts.optimizers.size(),
          .schedulers = parts.schedulers.size(),
          .loaders = parts.loaders.size(),
          .objects = registered.objects.size(),
          .hooks = registered.hooks.size()};
}

void RankTraining::forget_parts(const PartCounts& kept) {
  const auto shorten = [](auto& list, std::size_t size) {
    list.erase(list.begin() + static_cast<std::ptrdiff_t>(size), list.end());
  };
  parts.reducers.shorten(kept.models);
  shorten(parts.optimizers, kept.optimizers);
  shorten(parts.schedulers, kept.schedulers);
  shorten(parts.loaders, kept.loaders);
  shorten(checkpoints.registered().objects, kept.objects);
  shorten(checkpoints.registered().hooks, kept.hooks);
}

std::function<void()> RankTraining::undo_point() {
  std::vector<std::pair<at::Generator, at::Tensor>> generators;
  const auto note = [&generators](const rng::RankGenerators& all) {
    generators.emplace_back(all.cpu, all.cpu.get_state());
    for (const at::Generator& generator : all.cuda)
      if (generator.defined()) generators.emplace_back(generator, generator.get_state());
  };
  note(context.generators);
  if (context.shards)
    for (const rng::RankGenerators& shard : context.shards->of_shards()) note(shard);
  std::optional<optim::GradScalerState> scaler;
  if (parts.scaler) scaler = parts.scaler->state();
  return [this, generators, scaler, window = context.window, place = join.place(), trigger = context.trigger,
          counts = part_counts()] {
    forget_parts(counts);
    context.window = window;
    if (exact) exact->forget_window();
    join.return_to(place);
    context.trigger = trigger;
    if (scaler) parts.scaler->load_state(*scaler);
    for (auto [generator, state] : generators) generator.set_state(state);
  };
}

}  // namespace tandem
