#include <algorithm>
#include <new>

#include <c10/util/Exception.h>

#include "backend/device_memory.h"
#include "backend/rank_memory.h"
#include "runtime/checkpoints.h"
#include "runtime/step_follower.h"
#include "runtime/training_parts.h"
#include "tandem/comm/agree.h"
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
  const comm::CallRecord record{.operation = comm::Operation::find_executable_batch_size};
  comm::agree(
      *context_.group, rank(), record,
      {.signature = static_cast<std::uint64_t>(start),
       .refusal = comm::refusal_of([&] {
         if (start < 1)
           throw ConfigError("batch size " + std::to_string(start) + " to start from is too small; use 1 or more");
       }),
       .describe = [&] { return "find_executable_batch_size from " + std::to_string(start); }});
  const auto undo = undo_point();
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
    if (context_.follower) context_.follower->come_back();  // bodies have ended at different steps
    free_rank_memory();                                     // of sizes that are not wanted again
    context_.group->meet(rank(), record);
    if (is_main()) free_device_memory(device());  // on all devices, before a rank may wait for another on one
    context_.group->meet(rank(), record);
  }
  throw ConfigError("no batch size fits: rank " + std::to_string(failed) + " ran out of memory with 1 too");
}

std::function<void()> Accelerator::undo_point() {
  std::vector<std::pair<at::Generator, at::Tensor>> generators{
      {context_.generators.cpu, context_.generators.cpu.get_state()}};
  for (const at::Generator& generator : context_.generators.cuda)
    if (generator.defined()) generators.emplace_back(generator, generator.get_state());
  std::optional<optim::GradScalerState> scaler;
  if (prepared_.scaler) scaler = prepared_.scaler->state();
  return [this, generators, scaler, gradients = context_.gradients, join = reductions_in_join_, trigger = trigger_,
          models = prepared_.reducers.size(), optimizers = prepared_.optimizers.size(),
          schedulers = prepared_.schedulers.size(), loaders = prepared_.loaders.size(),
          objects = checkpoints_->registered().objects.size(), hooks = checkpoints_->registered().hooks.size()] {
    const auto shorten = [](auto& list, std::size_t size) {
      list.erase(list.begin() + static_cast<std::ptrdiff_t>(size), list.end());
    };
    prepared_.reducers.shorten(models);
    shorten(prepared_.optimizers, optimizers);
    shorten(prepared_.schedulers, schedulers);
    shorten(prepared_.loaders, loaders);
    shorten(checkpoints_->registered().objects, objects);
    shorten(checkpoints_->registered().hooks, hooks);
    context_.gradients = gradients;
    reductions_in_join_ = join;
    trigger_ = trigger;
    if (scaler) prepared_.scaler->load_state(*scaler);
    for (auto [generator, state] : generators) generator.set_state(state);
  };
}

}  // namespace tandem
