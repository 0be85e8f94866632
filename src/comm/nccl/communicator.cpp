#include "comm/nccl/communicator.h"

#include <algorithm>
#include <deque>
#include <iterator>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <ATen/Functions.h>
#include <c10/core/StreamGuard.h>

#include "comm/check_tensors.h"
#include "comm/side_stream.h"
#include "tandem/comm/object_bytes.h"
#include "tandem/core/error.h"

namespace tandem::comm::nccl {
namespace {

// How NCCL reduces tensors of a type: as so many elements of another one each.
struct Native {
  Type type;
  Op op;
  int parts = 1;
};

Op op_of(ReduceOp op) {
  switch (op) {
    case ReduceOp::sum: return Op::sum;
    case ReduceOp::mean: return Op::mean;
    case ReduceOp::max: return Op::max;
    case ReduceOp::min: return Op::min;
    case ReduceOp::product: return Op::product;
  }
  return Op::sum;
}

// A bool is a byte that is 0 or 1: its sum is the larger one, its product the smaller.
Native of_bool(ReduceOp op) {
  const bool is_or = op == ReduceOp::sum || op == ReduceOp::max;
  return {Type::u8, is_or ? Op::max : Op::min};
}

// Nothing where NCCL has no such type, or other rules (a NaN need not win there).
std::optional<Native> native(c10::ScalarType type, ReduceOp op) {
  const bool orders = op == ReduceOp::max || op == ReduceOp::min;
  const auto number = [&](Type as) { return Native{as, op_of(op)}; };
  const auto real = [&](Type as) { return orders ? std::nullopt : std::optional(number(as)); };
  const auto complex = [&](Type as) {
    return op == ReduceOp::product ? std::nullopt : std::optional(Native{as, op_of(op), 2});
  };
  switch (type) {
    case at::kFloat: return real(Type::f32);
    case at::kDouble: return real(Type::f64);
    case at::kHalf: return real(Type::f16);
    case at::kBFloat16: return real(Type::bf16);
    case at::kComplexFloat: return complex(Type::f32);
    case at::kComplexDouble: return complex(Type::f64);
    case at::kChar: return number(Type::i8);
    case at::kByte: return number(Type::u8);
    case at::kInt: return number(Type::i32);
    case at::kUInt32: return number(Type::u32);
    case at::kLong: return number(Type::i64);
    case at::kUInt64: return number(Type::u64);
    case at::kBool: return of_bool(op);
    default: return std::nullopt;
  }
}

const void* data_of(const at::Tensor& tensor) { return tensor.const_data_ptr(); }

// A reduction that was started, with what it uses.
struct EnqueuedReduction {
  EnqueuedReduction(std::uint64_t its_number, c10::Event its_end) : number(its_number), done(std::move(its_end)) {}

  std::uint64_t number;
  c10::Event done;
  std::vector<at::Tensor> tensors;
};

std::size_t bytes_of(at::TensorList tensors) {
  std::size_t bytes = 0;
  for (const at::Tensor& tensor : tensors) bytes += tensor.nbytes();
  return bytes;
}

class RankCommunicator final : public NcclCommunicator {
 public:
  RankCommunicator(std::shared_ptr<Team> team, ReductionKernel& kernel, RankGroup& group, int rank, c10::Device device)
      : NcclCommunicator(rank, group.world_size(), device),
        team_(std::move(team)),
        kernel_(kernel),
        group_(group),
        stream_(device) {
    team_->init(rank);
    warm_up();
  }

  // The caching allocator must not give away what is still read or written.
  ~RankCommunicator() override { release_started(); }

  void reduce_small_with(std::unique_ptr<Communicator> other, std::size_t bytes) override {
    for_small_ = std::move(other);
    small_bytes_ = bytes;
  }

 private:
  using Sizes = std::vector<std::vector<std::int64_t>>;

  void do_all_reduce(const CallRecord& record, at::TensorList inputs, at::TensorList outputs, ReduceOp op) override {
    if (for_small_ && bytes_of(inputs) <= small_bytes_) return hand_on(*for_small_, record, inputs, outputs, op);
    const auto from = all_plain(inputs), to = all_plain(outputs);
    const auto rows = rows_for(from, op, bytes_of(inputs) <= kSmallAllReduce);
    call(record, [&] { enqueue_all_reduce(from, to, rows, op); });
    copy_back(to, outputs);
  }

  std::uint64_t do_start_all_reduce(const CallRecord& record, at::TensorList inputs, at::TensorList outputs,
                                    ReduceOp op) override {
    const auto rows = rows_for(inputs, op, false);
    stream_.follow_compute();
    {
      const c10::StreamGuard on(stream_.stream());
      enqueue_all_reduce(inputs, outputs, rows, op);
    }
    EnqueuedReduction& started = started_.emplace_back(last_started_ + 1, stream_.mark());
    for (const at::TensorList list : {inputs, outputs, at::TensorList(rows)})
      std::copy_if(list.begin(), list.end(), std::back_inserter(started.tensors),
                   [](const at::Tensor& tensor) { return tensor.defined(); });
    // After NCCL has it: then who sees that all ranks have posted it knows that no device waits for a host any more.
    return last_started_ = group_.posted().post(rank(), record, nullptr);
  }

  bool do_sums_in_rank_order() const noexcept override { return false; }

  void do_wait(std::uint64_t number) override {
    while (number > finished_parts_) {
      const RankGroup::WaitScope scope(group_, rank(), "for the other ranks' gradients");
      group_.posted().wait(rank(), number);
      take_parts();
    }
    end_started(number);
    team_->check(rank());
  }

  bool do_try_wait(std::uint64_t number) override {
    take_parts();
    if (number > finished_parts_) return false;
    end_started(number);
    return true;
  }

  void do_forget_started() override {
    const auto started = group_.meet(rank(), CallRecord{.operation = "connect"}, last_started_);
    const bool alike = std::equal(started.begin() + 1, started.end(), started.begin());
    release_started();
    group_.posted().forget(rank());
    last_started_ = finished_parts_ = 0;
    if (!alike) team_->renew(rank());  // some devices wait for others that will not come
  }

  void do_reduce(const CallRecord& record, at::TensorList tensors, ReduceOp op, int root) override {
    const auto work = all_plain(tensors), rows = rows_for(work, op, false);
    call(record, [&] { enqueue_reduce(work, rows, op, root); });
    if (rank() == root) copy_back(work, tensors);
  }

  void do_broadcast(const CallRecord& record, at::TensorList tensors, int root) override {
    const auto work = all_plain(tensors);
    call(record, [&] {
      issue("ncclBroadcast", [&](Api& api, Comm comm) {
        return for_each(api, work, [&](const at::Tensor& tensor) {
          return api.broadcast(data_of(tensor), tensor.mutable_data_ptr(), tensor.nbytes(), Type::u8, root, comm,
                               raw());
        });
      });
    });
    if (rank() != root) copy_back(work, tensors);
  }

  std::vector<at::Tensor> do_all_gather(const CallRecord& record, const at::Tensor& tensor) override {
    const at::Tensor input = plain(tensor);
    std::vector<at::Tensor> gathered;
    for (const auto& sizes : exchange_sizes(record, {input.sizes().vec()}))
      gathered.push_back(at::empty(sizes.front(), input.options()));
    call(record, [&] { enqueue_gather(input, gathered); });
    return gathered;
  }

  at::Tensor do_reduce_scatter(const CallRecord& record, const at::Tensor& input, ReduceOp op) override {
    const at::Tensor work = plain(input);
    const std::int64_t share = input.size(0) / world_size();
    if (!native(input.scalar_type(), op)) {
      const at::Tensor reduced = at::empty_like(work);
      const auto rows = rows_for(work, op, true);
      call(record, [&] { reduce_gathered(work, reduced, rows, op); });
      return reduced.narrow(0, rank() * share, share).clone();
    }
    at::Tensor output = at::empty_like(work.narrow(0, 0, share), at::MemoryFormat::Contiguous);
    call(record, [&] { enqueue_reduce_scatter(work, output, op); });
    return output;
  }

  std::vector<at::Tensor> do_all_to_all(const CallRecord& record, at::TensorList inputs) override {
    const auto work = all_plain(inputs);
    std::vector<std::vector<std::int64_t>> mine;
    for (const at::Tensor& tensor : work) mine.push_back(tensor.sizes().vec());
    std::vector<at::Tensor> received;
    for (const auto& sizes : exchange_sizes(record, mine))
      received.push_back(at::empty(sizes[static_cast<std::size_t>(rank())], work.front().options()));
    call(record, [&] { enqueue_all_to_all(work, received); });
    return received;
  }

  void do_barrier(const CallRecord& call) override { group_.meet(rank(), call); }

  Stream raw() const { return stream_.stream().native_handle(); }

  // A call that all ranks make together: `enqueue` on the communication stream, between two meetings of the hosts.
  template <class Enqueue>
  void call(const CallRecord& record, Enqueue enqueue) {
    check_started(group_.meet(rank(), record, last_started_), record);
    stream_.follow_compute();
    {
      const c10::StreamGuard on(stream_.stream());
      enqueue();
    }
    stream_.let_compute_follow(stream_.mark());
    group_.meet(rank(), record);
    team_->check(rank());
  }

  // NCCL wants one order of all operations.
  void check_started(std::span<const std::uint64_t> started, const CallRecord& record) const {
    const auto [least, most] = std::minmax_element(started.begin(), started.end());
    if (*least == *most) return;
    throw CollectiveError("before " + to_string(record) + ", rank " + std::to_string(most - started.begin()) +
                          " has started " + std::to_string(*most) + " reductions of gradients, but rank " +
                          std::to_string(least - started.begin()) + " only " + std::to_string(*least) +
                          "; on GPUs all ranks must make both in the same order");
  }

  void issue(const char* name, const std::function<Result(Api&, Comm)>& call) { team_->issue(rank(), name, call); }

  // One group of NCCL operations; the first failure counts, and the group is always ended.
  template <class Operation>
  static Result group(Api& api, Operation operations) {
    if (const Result begun = api.group_start(); begun != Result::success) return begun;
    const Result result = operations();
    const Result ended = api.group_end();
    return result == Result::success || result == Result::in_progress ? ended : result;
  }

  template <class Operation>
  static Result for_each(Api& api, at::TensorList tensors, Operation operation) {
    return group(api, [&] {
      for (const at::Tensor& tensor : tensors)
        if (const Result result = operation(tensor); result != Result::success && result != Result::in_progress)
          return result;
      return Result::success;
    });
  }

  // Where NCCL gathers what Tandem's kernel reduces, in rank order: all, or what NCCL does not reduce; the others are
  // undefined. Made before the ranks meet: memory must not be allocated while another rank's kernel waits.
  std::vector<at::Tensor> rows_for(at::TensorList from, ReduceOp op, bool all) const {
    std::vector<at::Tensor> rows(from.size());
    for (std::size_t i = 0; i < from.size(); ++i)
      if (all || !native(from[i].scalar_type(), op))
        rows[i] = at::empty({world_size(), from[i].numel()}, from[i].options());
    return rows;
  }

  void enqueue_all_reduce(at::TensorList from, at::TensorList to, at::TensorList rows, ReduceOp op) {
    if (!std::all_of(rows.begin(), rows.end(), [](const at::Tensor& tensor) { return tensor.defined(); }))
      reduce_natively(from, to, rows, op);
    reduce_gathered(from, to, rows, op);
  }

  // Those that have no rows.
  void reduce_natively(at::TensorList from, at::TensorList to, at::TensorList rows, ReduceOp op) {
    issue("ncclAllReduce", [&](Api& api, Comm comm) {
      return group(api, [&] {
        for (std::size_t i = 0; i < from.size(); ++i) {
          if (rows[i].defined()) continue;
          const auto as = native(from[i].scalar_type(), op);
          const auto count = static_cast<std::size_t>(from[i].numel() * as->parts);
          const Result result =
              api.all_reduce(data_of(from[i]), to[i].mutable_data_ptr(), count, as->type, as->op, comm, raw());
          if (result != Result::success && result != Result::in_progress) return result;
        }
        return Result::success;
      });
    });
  }

  void enqueue_reduce(const std::vector<at::Tensor>& work, at::TensorList rows, ReduceOp op, int root) {
    issue("ncclReduce", [&](Api& api, Comm comm) {
      return for_each(api, work, [&](const at::Tensor& tensor) {
        const auto as = native(tensor.scalar_type(), op);
        if (!as) return Result::success;
        const auto count = static_cast<std::size_t>(tensor.numel() * as->parts);
        void* const to = rank() == root ? tensor.mutable_data_ptr() : nullptr;
        return api.reduce(data_of(tensor), to, count, as->type, as->op, root, comm, raw());
      });
    });
    reduce_gathered(work, rank() == root ? work : std::vector<at::Tensor>(work.size()), rows, op);
  }

  void enqueue_reduce_scatter(const at::Tensor& input, const at::Tensor& output, ReduceOp op) {
    const auto as = native(input.scalar_type(), op);
    issue("ncclReduceScatter", [&](Api& api, Comm comm) {
      const auto count = static_cast<std::size_t>(output.numel() * as->parts);
      return api.reduce_scatter(data_of(input), output.mutable_data_ptr(), count, as->type, as->op, comm, raw());
    });
  }

  // Each rank's tensor into one of `gathered`; they may differ in size.
  void enqueue_gather(const at::Tensor& input, const std::vector<at::Tensor>& gathered) {
    issue("ncclBroadcast", [&](Api& api, Comm comm) {
      int root = 0;
      return for_each(api, gathered, [&](const at::Tensor& to) {
        const int from = root++;
        return api.broadcast(data_of(input), to.mutable_data_ptr(), to.nbytes(), Type::u8, from, comm, raw());
      });
    });
  }

  void enqueue_all_to_all(const std::vector<at::Tensor>& sent, const std::vector<at::Tensor>& received) {
    issue("ncclSend", [&](Api& api, Comm comm) {
      return group(api, [&] {
        for (int peer = 0; peer < world_size(); ++peer) {
          const at::Tensor& to = received[static_cast<std::size_t>(peer)];
          const at::Tensor& from = sent[static_cast<std::size_t>(peer)];
          const Result sends = api.send(data_of(from), from.nbytes(), Type::u8, peer, comm, raw());
          if (sends != Result::success && sends != Result::in_progress) return sends;
          const Result receives = api.receive(to.mutable_data_ptr(), to.nbytes(), Type::u8, peer, comm, raw());
          if (receives != Result::success && receives != Result::in_progress) return receives;
        }
        return Result::success;
      });
    });
  }

  // Those that have rows, by Tandem's own kernel. Where `to` is undefined the result is not wanted here.
  void reduce_gathered(at::TensorList from, at::TensorList to, at::TensorList rows, ReduceOp op) {
    if (std::none_of(rows.begin(), rows.end(), [](const at::Tensor& tensor) { return tensor.defined(); })) return;
    issue("ncclAllGather", [&](Api& api, Comm comm) {
      auto next = rows.begin();
      return for_each(api, from, [&](const at::Tensor& tensor) {
        const at::Tensor& gathered = *next++;
        if (!gathered.defined()) return Result::success;
        return api.all_gather(data_of(tensor), gathered.mutable_data_ptr(), tensor.nbytes(), Type::u8, comm, raw());
      });
    });
    for (std::size_t i = 0; i < from.size(); ++i)
      if (rows[i].defined() && to[i].defined() && from[i].numel() > 0) reduce_rows(rows[i], to[i], op);
  }

  void reduce_rows(const at::Tensor& rows, const at::Tensor& to, ReduceOp op) {
    Reduction reduction{
        .count = static_cast<std::size_t>(rows.size(1)), .type = element_type(rows.scalar_type()), .op = op};
    for (int rank = 0; rank < world_size(); ++rank)
      reduction.inputs.push_back(static_cast<const std::byte*>(data_of(rows)) +
                                 static_cast<std::size_t>(rank) * to.nbytes());
    reduction.outputs = {to.mutable_data_ptr()};
    kernel_.reduce(reduction, raw());
  }

  // Every rank's sizes, by rank.
  std::vector<Sizes> exchange_sizes(const CallRecord& record, const Sizes& mine) {
    std::vector<Sizes> all;
    for (const std::string& bytes : group_.gather_bytes(rank(), record, pack(mine))) unpack(bytes, all.emplace_back());
    return all;
  }

  // Counts the reductions that all ranks have posted.
  void take_parts() {
    while (const PostedCalls::Part part{group_.posted(), rank()}) finished_parts_ += 1;
  }

  // The compute stream follows the reductions up to `number`.
  void end_started(std::uint64_t number) {
    while (!started_.empty() && started_.front().number <= number) {
      stream_.let_compute_follow(std::move(started_.front().done));
      started_.pop_front();
    }
  }

  void release_started() {
    for (EnqueuedReduction& started : started_)
      for (at::Tensor& tensor : started.tensors) tensor.record_stream(stream_.stream());
    started_.clear();
  }

  // The first use of each algorithm connects and allocates, which must not happen while another rank's kernel waits.
  void warm_up() {
    kernel_.prepare();
    const at::Tensor one = at::zeros({world_size()}, at::dtype(at::kFloat).device(device()));
    all_reduce({one}, {one}, ReduceOp::sum);
    call({.operation = "connect"}, [&] { enqueue_all_reduce(one, one, at::Tensor(), ReduceOp::sum); });
    reduce({one}, ReduceOp::sum, 0);
    broadcast({one}, 0);
    all_gather(one);
    reduce_scatter(one, ReduceOp::sum);
    all_to_all(one.chunk(world_size()));
    const RankGroup::WaitScope scope(group_, rank(), "for NCCL's first collectives");
    stream_.synchronize();
    barrier();
  }

  const std::shared_ptr<Team> team_;
  ReductionKernel& kernel_;
  RankGroup& group_;
  SideStream stream_;
  std::unique_ptr<Communicator> for_small_;
  std::size_t small_bytes_ = 0;
  std::deque<EnqueuedReduction> started_;  // and not waited for, in order
  std::uint64_t last_started_ = 0, finished_parts_ = 0;
};

}  // namespace

std::unique_ptr<NcclCommunicator> make_communicator(std::shared_ptr<Team> team, ReductionKernel& kernel,
                                                    RankGroup& group, int rank, c10::Device device) {
  return std::make_unique<RankCommunicator>(std::move(team), kernel, group, rank, device);
}

}  // namespace tandem::comm::nccl
