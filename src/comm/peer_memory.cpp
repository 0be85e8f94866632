#include "comm/peer_memory.h"

#include <algorithm>
#include <deque>
#include <utility>

#include <ATen/Functions.h>
#include <c10/core/StreamGuard.h>

#include "comm/check_tensors.h"
#include "comm/rank_group.h"
#include "comm/shares.h"
#include "comm/side_stream.h"
#include "tandem/core/error.h"

namespace tandem::comm {

PeerMarks::PeerMarks(int world_size, c10::DeviceType type) {
  for (int rank = 0; rank < world_size; ++rank) marks_.push_back(std::make_unique<Mark>(type));
}

void PeerMarks::mark(int rank, c10::Stream stream) {
  Mark& mark = *marks_[static_cast<std::size_t>(rank)];
  const std::lock_guard lock(mark.mutex);
  mark.event.record(stream);
}

void PeerMarks::let_follow(c10::Stream stream, int rank) {
  Mark& mark = *marks_[static_cast<std::size_t>(rank)];
  const std::lock_guard lock(mark.mutex);
  mark.event.block(stream);
}

namespace {

// Tensors that a rank lends to the others, and a mark after what has written them.
struct Lent {
  explicit Lent(c10::DeviceType type) : ready(type) {}

  void fill(at::TensorList from, at::TensorList to, ReduceOp its_op, c10::Stream stream) {
    inputs.assign(from.begin(), from.end());
    outputs.assign(to.begin(), to.end());
    input_rows = rows_of(inputs);
    output_rows = rows_of(outputs);
    op = its_op;
    ready.record(stream);
  }

  std::vector<at::Tensor> inputs, outputs;
  std::vector<ElementRow> input_rows, output_rows;
  ReduceOp op = ReduceOp::sum;
  c10::Event ready;
  std::uint64_t number = 0;  // of a started reduction

 private:
  static std::vector<ElementRow> rows_of(at::TensorList tensors) {
    std::vector<ElementRow> rows;
    for (const at::Tensor& tensor : tensors)
      rows.push_back({const_cast<void*>(tensor.const_data_ptr()), tensor.numel(), element_type(tensor.scalar_type())});
    return rows;
  }
};

void* at_element(void* data, ElementType type, std::int64_t element) {
  return static_cast<std::byte*>(data) + static_cast<std::size_t>(element) * size_of(type);
}

class PeerMemoryCommunicator final : public Communicator {
 public:
  PeerMemoryCommunicator(ReductionKernel& kernel, PeerMarks& marks, RankGroup& group, int rank, c10::Device device)
      : Communicator(rank, group.world_size(), device),
        kernel_(kernel),
        marks_(marks),
        group_(group),
        stream_(device),
        lent_(device.type()) {
    marks_.mark(rank, stream_.stream());
    barrier();
  }

  ~PeerMemoryCommunicator() override {
    if (started_.empty()) return;
    // The others may be about to read memory that goes now.
    group_.token().cancel(std::make_exception_ptr(CollectiveError("rank " + std::to_string(rank()) +
                                                                  " ended while its gradients were being reduced")),
                          rank());
    group_.posted().withdraw(rank());
    let_compute_follow_all();
  }

 private:
  void do_all_reduce(const CallRecord& call, at::TensorList inputs, at::TensorList outputs, ReduceOp op) override {
    reduce_into(call, inputs, outputs, op, -1);
  }

  std::uint64_t do_start_all_reduce(const CallRecord& call, at::TensorList inputs, at::TensorList outputs,
                                    ReduceOp op) override {
    if (spare_.empty()) spare_.push_back(std::make_unique<Lent>(device().type()));
    started_.push_back(std::move(spare_.back()));
    spare_.pop_back();
    Lent& lent = *started_.back();
    lent.fill(inputs, outputs, op, stream_.compute());
    lent.number = group_.posted().post(rank(), call, &lent);
    do_parts();
    return lent.number;
  }

  void do_wait(std::uint64_t number) override {
    if (do_try_wait(number)) return;
    const RankGroup::WaitScope waiting(group_, rank(), "for the others' gradients");
    do group_.posted().wait(rank(), number);
    while (!do_try_wait(number));
  }

  bool do_try_wait(std::uint64_t number) override {
    if (number == 0) return true;
    do_parts();
    if (!group_.posted().done(number)) return false;
    let_compute_follow_all();
    while (!started_.empty() && started_.front()->number <= number) end_first_started();
    return true;
  }

  void do_forget_started() override {
    barrier();  // nobody enqueues any more
    let_compute_follow_all();
    while (!started_.empty()) end_first_started();
    group_.posted().forget(rank());
  }

  void do_reduce(const CallRecord& call, at::TensorList tensors, ReduceOp op, int root) override {
    reduce_into(call, tensors, tensors, op, root);
  }

  void do_broadcast(const CallRecord& record, at::TensorList tensors, int root) override {
    exchange(record, all_plain(tensors), {}, ReduceOp::sum, [&](const RankGroup::Call& call, c10::Stream) {
      if (rank() == root) return;
      const auto& source = lent_by(call, root).inputs;
      for (std::size_t i = 0; i < tensors.size(); ++i) tensors[i].detach().copy_(source[i]);
    });
  }

  std::vector<at::Tensor> do_all_gather(const CallRecord& record, const at::Tensor& tensor) override {
    std::vector<at::Tensor> gathered;
    exchange(record, {plain(tensor)}, {}, ReduceOp::sum, [&](const RankGroup::Call& call, c10::Stream compute) {
      for (int peer = 0; peer < world_size(); ++peer)
        gathered.push_back(copy_of(lent_by(call, peer).inputs.front(), compute));
    });
    return gathered;
  }

  at::Tensor do_reduce_scatter(const CallRecord& record, const at::Tensor& input, ReduceOp op) override {
    const at::Tensor work = plain(input);
    at::Tensor output = at::empty_like(work.narrow(0, 0, input.size(0) / world_size()), at::MemoryFormat::Contiguous);
    exchange(record, {work}, {}, op, [&](const RankGroup::Call& call, c10::Stream) {
      Reduction reduction = reduction_of(call, 0, rank() * output.numel(), output.numel());
      reduction.outputs = {output.mutable_data_ptr()};
      if (reduction.count > 0) kernel_.reduce(reduction, stream_.stream().native_handle());
    });
    return output;
  }

  std::vector<at::Tensor> do_all_to_all(const CallRecord& record, at::TensorList inputs) override {
    std::vector<at::Tensor> received;
    exchange(record, all_plain(inputs), {}, ReduceOp::sum, [&](const RankGroup::Call& call, c10::Stream compute) {
      for (int peer = 0; peer < world_size(); ++peer)
        received.push_back(copy_of(lent_by(call, peer).inputs[static_cast<std::size_t>(rank())], compute));
    });
    return received;
  }

  void do_barrier(const CallRecord& call) override { group_.meet(rank(), call); }

  static const Lent& lent_by(const RankGroup::Call& call, int peer) { return *call.payload<const Lent*>(peer); }

  // Memory that the compute stream allocates, filled by the current one.
  at::Tensor copy_of(const at::Tensor& theirs, c10::Stream compute) const {
    at::Tensor copy;
    {
      const c10::StreamGuard on(compute);
      copy = at::empty(theirs.sizes(), theirs.options().device(device()));
    }
    return copy.copy_(theirs);
  }

  void reduce_into(const CallRecord& record, at::TensorList inputs, at::TensorList outputs, ReduceOp op, int root) {
    const auto from = all_plain(inputs), to = outputs.data() == inputs.data() ? from : all_plain(outputs);
    exchange(record, from, to, op, [&](const RankGroup::Call& call, c10::Stream) {
      reduce_share([&](int peer) -> const Lent& { return lent_by(call, peer); }, op, root);
    });
    if (root < 0 || root == rank()) copy_back(to, outputs);
  }

  // A call that all ranks make together: `enqueue` uses what they lend, on the communication stream; the compute stream
  // goes on when all ranks' streams are through with it.
  template <class Enqueue>
  void exchange(const CallRecord& record, const std::vector<at::Tensor>& inputs, const std::vector<at::Tensor>& outputs,
                ReduceOp op, const Enqueue& enqueue) {
    const c10::Stream compute = stream_.compute();
    lent_.fill(inputs, outputs, op, compute);
    {
      const Lent* const mine = &lent_;
      const RankGroup::Call call(group_, rank(), record, &mine);
      for (int peer = 0; peer < world_size(); ++peer) lent_by(call, peer).ready.block(stream_.stream());
      const c10::StreamGuard on(stream_.stream());
      enqueue(call, compute);
      marks_.mark(rank(), stream_.stream());
    }
    let_compute_follow_all();
    lent_.inputs.clear();
    lent_.outputs.clear();
  }

  // Elements [begin, begin + count) of the ranks' i-th tensors.
  Reduction reduction_of(const RankGroup::Call& call, std::size_t i, std::int64_t begin, std::int64_t count) const {
    const ElementRow& mine = lent_.input_rows[i];
    Reduction reduction{.count = static_cast<std::size_t>(count), .type = mine.type, .op = lent_.op};
    for (int peer = 0; peer < world_size(); ++peer)
      reduction.inputs.push_back(at_element(lent_by(call, peer).input_rows[i].data, mine.type, begin));
    return reduction;
  }

  // This rank's share of a reduction of what `of` tells of the ranks.
  template <class Lists>
  void reduce_share(const Lists& of, ReduceOp op, int root) {
    const auto& parts = of(rank()).input_rows;
    for_each_share(parts, rank(), world_size(), [&](std::size_t i, std::int64_t begin, std::int64_t end) {
      const ElementType type = parts[i].type;
      Reduction reduction{.count = static_cast<std::size_t>(end - begin), .type = type, .op = op};
      for (int peer = 0; peer < world_size(); ++peer) {
        const Lent& theirs = of(peer);
        reduction.inputs.push_back(at_element(theirs.input_rows[i].data, type, begin));
        if (root < 0 || root == peer) reduction.outputs.push_back(at_element(theirs.output_rows[i].data, type, begin));
      }
      kernel_.reduce(reduction, stream_.stream().native_handle());
    });
  }

  // This rank's part of the reductions that all have started, on the communication stream.
  void do_parts() {
    for (;;) {
      const PostedCalls::Part part(group_.posted(), rank());
      if (!part) return;
      const auto of = [&](int peer) -> const Lent& { return part.template payload<Lent>(peer); };
      for (int peer = 0; peer < world_size(); ++peer) of(peer).ready.block(stream_.stream());
      reduce_share(of, of(rank()).op, -1);
      marks_.mark(rank(), stream_.stream());
    }
  }

  void let_compute_follow_all() {
    for (int peer = 0; peer < world_size(); ++peer) marks_.let_follow(stream_.compute(), peer);
  }

  void end_first_started() {
    started_.front()->inputs.clear();
    started_.front()->outputs.clear();
    spare_.push_back(std::move(started_.front()));
    started_.pop_front();
  }

  ReductionKernel& kernel_;
  PeerMarks& marks_;
  RankGroup& group_;
  SideStream stream_;
  Lent lent_;                                  // for the current call
  std::deque<std::unique_ptr<Lent>> started_;  // and not waited for, in order
  std::vector<std::unique_ptr<Lent>> spare_;
};

}  // namespace

std::unique_ptr<Communicator> make_peer_memory_communicator(ReductionKernel& kernel, PeerMarks& marks, RankGroup& group,
                                                            int rank, c10::Device device) {
  return std::make_unique<PeerMemoryCommunicator>(kernel, marks, group, rank, device);
}

}  // namespace tandem::comm
