#pragma once

#include <c10/core/DispatchKey.h>

namespace tandem::rng {

/// The dispatch key that stands for "this thread has default generators of its own". LibTorch has it for a project
/// outside of it (torchdistx) and registers nothing on it. It lies above autograd and autocast, so that their kernels
/// already see the generator.
inline constexpr c10::DispatchKey kDefaultGeneratorKey = c10::DispatchKey::DeferredInit;

/// Registers, once a process, a kernel on that key for every operator that takes an optional generator, and a
/// fallthrough for all others. They stay for the life of the process and act only on threads that have switched the key
/// on. Operators of libraries that are loaded later are not covered. Any thread.
void register_default_generator_kernels();

}  // namespace tandem::rng
