#include "backend/cuda/nccl_api.h"

#include <cstring>

#include <nccl.h>

namespace tandem::cuda {
namespace {

using comm::nccl::Op;
using comm::nccl::Result;
using comm::nccl::Type;

template <class Ours, class Theirs>
constexpr bool same(Ours ours, Theirs theirs) {
  return static_cast<int>(ours) == static_cast<int>(theirs);
}
static_assert(same(Result::success, ncclSuccess) && same(Result::in_progress, ncclInProgress));
static_assert(same(Type::i8, ncclInt8) && same(Type::u8, ncclUint8) && same(Type::i32, ncclInt32));
static_assert(same(Type::u32, ncclUint32) && same(Type::i64, ncclInt64) && same(Type::u64, ncclUint64));
static_assert(same(Type::f16, ncclFloat16) && same(Type::f32, ncclFloat32) && same(Type::f64, ncclFloat64));
static_assert(same(Type::bf16, ncclBfloat16));
static_assert(same(Op::sum, ncclSum) && same(Op::product, ncclProd) && same(Op::max, ncclMax));
static_assert(same(Op::min, ncclMin) && same(Op::mean, ncclAvg));
static_assert(sizeof(comm::nccl::UniqueId) == sizeof(ncclUniqueId));

Result ours(ncclResult_t result) { return static_cast<Result>(result); }
ncclDataType_t theirs(Type type) { return static_cast<ncclDataType_t>(type); }
ncclRedOp_t theirs(Op op) { return static_cast<ncclRedOp_t>(op); }
ncclComm_t theirs(comm::nccl::Comm comm) { return static_cast<ncclComm_t>(comm); }
cudaStream_t stream_of(comm::nccl::Stream stream) { return static_cast<cudaStream_t>(stream); }

}  // namespace

int NcclApi::version() {
  int version = 0;
  ncclGetVersion(&version);
  return version;
}

std::string NcclApi::error_string(Result result) { return ncclGetErrorString(static_cast<ncclResult_t>(result)); }

std::string NcclApi::last_error(Comm comm) {
  const char* const text = ncclGetLastError(theirs(comm));
  return text ? text : "";
}

Result NcclApi::get_unique_id(UniqueId& id) {
  ncclUniqueId unique;
  const ncclResult_t result = ncclGetUniqueId(&unique);
  std::memcpy(id.data(), &unique, sizeof unique);
  return ours(result);
}

Result NcclApi::init_rank(Comm& comm, int world_size, const UniqueId& id, int rank) {
  ncclUniqueId unique;
  std::memcpy(&unique, id.data(), sizeof unique);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclComm_t made = nullptr;
  const ncclResult_t result = ncclCommInitRankConfig(&made, world_size, unique, rank, &config);
  comm = made;
  return ours(result);
}

Result NcclApi::async_error(Comm comm, Result& state) {
  ncclResult_t its_state = ncclSuccess;
  const ncclResult_t result = ncclCommGetAsyncError(theirs(comm), &its_state);
  state = ours(its_state);
  return ours(result);
}

Result NcclApi::finalize(Comm comm) { return ours(ncclCommFinalize(theirs(comm))); }
Result NcclApi::destroy(Comm comm) { return ours(ncclCommDestroy(theirs(comm))); }
Result NcclApi::abort(Comm comm) { return ours(ncclCommAbort(theirs(comm))); }
Result NcclApi::group_start() { return ours(ncclGroupStart()); }
Result NcclApi::group_end() { return ours(ncclGroupEnd()); }

Result NcclApi::all_reduce(const void* from, void* to, std::size_t count, Type type, Op op, Comm comm, Stream stream) {
  return ours(ncclAllReduce(from, to, count, theirs(type), theirs(op), theirs(comm), stream_of(stream)));
}

Result NcclApi::reduce(const void* from, void* to, std::size_t count, Type type, Op op, int root, Comm comm,
                       Stream stream) {
  return ours(ncclReduce(from, to, count, theirs(type), theirs(op), root, theirs(comm), stream_of(stream)));
}

Result NcclApi::broadcast(const void* from, void* to, std::size_t count, Type type, int root, Comm comm,
                          Stream stream) {
  return ours(ncclBroadcast(from, to, count, theirs(type), root, theirs(comm), stream_of(stream)));
}

Result NcclApi::all_gather(const void* from, void* to, std::size_t count, Type type, Comm comm, Stream stream) {
  return ours(ncclAllGather(from, to, count, theirs(type), theirs(comm), stream_of(stream)));
}

Result NcclApi::reduce_scatter(const void* from, void* to, std::size_t count, Type type, Op op, Comm comm,
                               Stream stream) {
  return ours(ncclReduceScatter(from, to, count, theirs(type), theirs(op), theirs(comm), stream_of(stream)));
}

Result NcclApi::send(const void* from, std::size_t count, Type type, int peer, Comm comm, Stream stream) {
  return ours(ncclSend(from, count, theirs(type), peer, theirs(comm), stream_of(stream)));
}

Result NcclApi::receive(void* to, std::size_t count, Type type, int peer, Comm comm, Stream stream) {
  return ours(ncclRecv(to, count, theirs(type), peer, theirs(comm), stream_of(stream)));
}

}  // namespace tandem::cuda
