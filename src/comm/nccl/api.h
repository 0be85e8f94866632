// What Tandem asks of NCCL, without NCCL's header: the CUDA module implements it with the library, tests with a fake.
#pragma once

#include <array>
#include <cstddef>
#include <string>

namespace tandem::comm::nccl {

// Values are those of nccl.h.
enum class Result : int { success = 0, in_progress = 7 };  // every other one is an error
enum class Type : int { i8 = 0, u8 = 1, i32 = 2, u32 = 3, i64 = 4, u64 = 5, f16 = 6, f32 = 7, f64 = 8, bf16 = 9 };
enum class Op : int { sum = 0, product = 1, max = 2, min = 3, mean = 4 };

using Comm = void*;    // ncclComm_t
using Stream = void*;  // cudaStream_t
using UniqueId = std::array<char, 128>;

/// NCCL's functions of the same names, for communicators that never block: every call on one may return `in_progress`,
/// and is then done when `async_error` says so. Reentrant, but one communicator is used by one thread at a time, except
/// for `async_error`. Counts are elements.
class Api {
 public:
  virtual ~Api() = default;

  virtual int version() = 0;                     ///< such as 22809 for 2.28.9
  virtual std::string error_string(Result) = 0;  ///< what a result means
  virtual std::string last_error(Comm) = 0;      ///< details of the communicator's last error; may be empty

  virtual Result get_unique_id(UniqueId&) = 0;
  /// Begins the communicator of `rank`, on the calling thread's current device. `comm` is set in any case that leaves
  /// something to abort, and null otherwise.
  virtual Result init_rank(Comm& comm, int world_size, const UniqueId&, int rank) = 0;
  virtual Result async_error(Comm, Result& state) = 0;  ///< the state of what goes on

  virtual Result finalize(Comm) = 0;
  virtual Result destroy(Comm) = 0;
  virtual Result abort(Comm) = 0;

  virtual Result group_start() = 0;
  virtual Result group_end() = 0;
  virtual Result all_reduce(const void* from, void* to, std::size_t count, Type, Op, Comm, Stream) = 0;
  virtual Result reduce(const void* from, void* to, std::size_t count, Type, Op, int root, Comm, Stream) = 0;
  virtual Result broadcast(const void* from, void* to, std::size_t count, Type, int root, Comm, Stream) = 0;
  virtual Result all_gather(const void* from, void* to, std::size_t count, Type, Comm, Stream) = 0;
  /// `count`: elements that each rank gets.
  virtual Result reduce_scatter(const void* from, void* to, std::size_t count, Type, Op, Comm, Stream) = 0;
  virtual Result send(const void* from, std::size_t count, Type, int peer, Comm, Stream) = 0;
  virtual Result receive(void* to, std::size_t count, Type, int peer, Comm, Stream) = 0;
};

}  // namespace tandem::comm::nccl
