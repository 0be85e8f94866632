// NCCL itself.
#pragma once

#include "comm/nccl/api.h"

namespace tandem::cuda {

class NcclApi final : public comm::nccl::Api {
 public:
  using Comm = comm::nccl::Comm;
  using Op = comm::nccl::Op;
  using Result = comm::nccl::Result;
  using Stream = comm::nccl::Stream;
  using Type = comm::nccl::Type;
  using UniqueId = comm::nccl::UniqueId;

  int version() override;
  std::string error_string(Result result) override;
  std::string last_error(Comm comm) override;
  Result get_unique_id(UniqueId& id) override;
  Result init_rank(Comm& comm, int world_size, const UniqueId& id, int rank) override;
  Result async_error(Comm comm, Result& state) override;
  Result finalize(Comm comm) override;
  Result destroy(Comm comm) override;
  Result abort(Comm comm) override;
  Result group_start() override;
  Result group_end() override;
  Result all_reduce(const void* from, void* to, std::size_t count, Type type, Op op, Comm comm, Stream stream) override;
  Result reduce(const void* from, void* to, std::size_t count, Type type, Op op, int root, Comm comm,
                Stream stream) override;
  Result broadcast(const void* from, void* to, std::size_t count, Type type, int root, Comm comm,
                   Stream stream) override;
  Result all_gather(const void* from, void* to, std::size_t count, Type type, Comm comm, Stream stream) override;
  Result reduce_scatter(const void* from, void* to, std::size_t count, Type type, Op op, Comm comm,
                        Stream stream) override;
  Result send(const void* from, std::size_t count, Type type, int peer, Comm comm, Stream stream) override;
  Result receive(void* to, std::size_t count, Type type, int peer, Comm comm, Stream stream) override;
};

}  // namespace tandem::cuda
