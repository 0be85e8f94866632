#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <c10/core/Device.h>
#include <c10/core/Stream.h>

#include "backend/graph.h"
#include "backend/out_of_memory.h"

/// CUDA in host memory, for programs that do not load LibTorch's: devices, streams, events, pinned memory, generators.
/// Operators run at once, on the CPU; but the fake knows which order streams and events would have guaranteed, and
/// reports accesses to memory that have none, and memory that is freed too early. (Host threads are taken to be ordered
/// as they really ran.)
namespace tandem::test::fake {

constexpr int kDevices = 8;

/// To be called before anything else here; any number of times.
void install();

/// Device `index`.
c10::Device device(int index);

/// What a kernel that is not LibTorch's does on `stream`, given by its native handle.
void note_read(void* stream, const void* data, std::size_t bytes);
void note_write(void* stream, const void* data, std::size_t bytes);

/// A graph of what the calling thread's operators do. What they do while it is recorded is undone.
std::unique_ptr<Graph> make_graph();

/// As of LibTorch's allocator: `tell` hears when device memory runs out.
void on_out_of_memory(std::function<void(const OutOfMemory&)> tell);

/// Bytes that a device has for a single tensor; a larger one is an out of memory. `only`: on that device; -1: on all.
void set_largest_tensor(std::size_t bytes, int only = -1);

/// Bytes that a device says it has left; tensors get theirs all the same.
void set_free_memory(std::size_t bytes);

/// Has each replay of a graph take so much longer.
void set_replay_delay(std::chrono::milliseconds delay);

/// What was found since `reset`, one text each.
std::vector<std::string> races();

/// Forgets all accesses and what was found.
void reset();

/// Copies to a device since `reset` that were not from pinned memory: on a real one the host waits for them.
int pageable_copies();

/// Bytes of device memory that tensors have.
std::size_t allocated();

}  // namespace tandem::test::fake
