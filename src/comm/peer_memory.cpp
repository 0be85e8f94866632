#include "comm/peer_memory.h"

#include <algorithm>
#include <deque>
#include <utility>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/StreamGuard.h>

#include "comm/check_tensors.h"
#include "comm/describe_call.h"
#include "comm/shares.h"
#include "tandem/comm/side_stream.h"
#include "tandem/core/error.h"
#include "tandem/trace/range.h"

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
    input_parts = parts_of(inputs);
    output_parts = parts_of(outputs);
    op = its_op;
    ready.record(stream);
  }

  std::vector<at::Tensor> inputs, outputs;
  std::vector<Part> input_parts, output_parts;
  ReduceOp op = ReduceOp::sum;
  c10::Event ready;
  std::uint64_t number = 0;  // of a started reduction

 private:
  static std::vector<Part> parts_of(at::TensorList tensors) {
    std::vector<Part> parts;
    for (const at::Tensor& tensor : tensors)
      parts.push_back({const_cast<void*>(tensor.const_data_ptr()), tensor.numel(), element_type(tensor.scalar_type())});
    return parts;
  }
};

void* at_element(void* data, ElementType type, std::int64_t element) {
  return static_cast<std::byte*>(data) + static_cast<std::size_t>(element) * size_of(type);
}

class PeerMemoryCommunicator final : public Communicator {
 public:
  PeerMemoryCommunicator(ReductionKernel& kernel, PeerMarks& marks, RankGroup& group, int rank, c10::Device device)
      : kernel_(kernel),
        marks_(marks),
        group_(group),
        rank_(rank),
        device_(device),
        stream_(device),
        lent_(device.type()) {
    marks_.mark(rank_, stream_.stream());
    barrier();
  }

  ~PeerMemoryCommunicator() override {
    if (started_.empty()) return;
    // The others may be about to read memory that goes now.
    group_.token().cancel(std::make_exception_ptr(CollectiveError("rank " + std::to_string(rank_) +
                                                                  " ended while its gradients were being reduced")),
                          rank_);
    group_.posted().withdraw(rank_);
    let_compute_follow_all();
  }

  int rank() const override { return rank_; }
  int world_size() const override { return group_.world_size(); }

  void all_reduce(at::TensorList inputs, at::TensorList outputs, ReduceOp op) override {
    reduce_into("all_reduce", inputs, outputs, op, -1);
  }

  using Communicator::start_all_reduce;
  std::uint64_t start_all_reduce(at::TensorList inputs, at::TensorList outputs, ReduceOp op,
                                 at::TensorList squares) override {
    check_rows(inputs, outputs, device_);
    for (const at::Tensor& tensor : inputs) check_reduction(op, tensor.scalar_type());
    if (!squares.empty()) throw CollectiveError("sums of squares come with reductions in shared memory only");
    CallRecord record = describe_call("all_reduce", inputs, SizeCheck::elements);
    record.reduce = op;
    if (spare_.empty()) spare_.push_back(std::make_unique<Lent>(device_.type()));
    started_.push_back(std::move(spare_.back()));
    spare_.pop_back();
    Lent& lent = *started_.back();
    lent.fill(inputs, outputs, op, stream_.compute());
    lent.number = group_.posted().post(rank_, record, &lent);
    do_parts();
    return lent.number;
  }

  void wait(std::uint64_t number) override {
    if (try_wait(number)) return;
    const RankGroup::WaitScope waiting(group_, rank_, "for the others' gradients");
    do group_.posted().wait(rank_, number);
    while (!try_wait(number));
  }

  bool try_wait(std::uint64_t number) override {
    if (number == 0) return true;
    do_parts();
    if (!group_.posted().done(number)) return false;
    let_compute_follow_all();
    while (!started_.empty() && started_.front()->number <= number) end_first_started();
    return true;
  }

  void forget_started() override {
    barrier();  // nobody enqueues any more
    let_compute_follow_all();
    while (!started_.empty()) end_first_started();
    group_.posted().forget(rank_);
  }

  void reduce(at::TensorList tensors, ReduceOp op, int root) override {
    check_root(root, world_size(), "reduce");
    reduce_into("reduce", tensors, tensors, op, root);
  }

  void broadcast(at::TensorList tensors, int root) override {
    check_dense(tensors, device_, "broadcast");
    check_root(root, world_size(), "broadcast");
    CallRecord record = describe_call("broadcast", tensors);
    record.root = root;
    const at::NoGradGuard no_grad;
    exchange(record, all_plain(tensors), {}, ReduceOp::sum, [&](const RankGroup::Call& call, c10::Stream) {
      if (rank_ == root) return;
      const auto& source = lent_by(call, root).inputs;
      for (std::size_t i = 0; i < tensors.size(); ++i) tensors[i].detach().copy_(source[i]);
    });
  }

  std::vector<at::Tensor> all_gather(const at::Tensor& tensor) override {
    check_dense(tensor, device_, "all_gather");
    const auto record = describe_call("all_gather", tensor, SizeCheck::all_but_first_dim);
    const at::NoGradGuard no_grad;
    std::vector<at::Tensor> gathered;
    exchange(record, {plain(tensor)}, {}, ReduceOp::sum, [&](const RankGroup::Call& call, c10::Stream compute) {
      for (int peer = 0; peer < world_size(); ++peer)
        gathered.push_back(copy_of(lent_by(call, peer).inputs.front(), compute));
    });
    return gathered;
  }

  at::Tensor reduce_scatter(const at::Tensor& input, ReduceOp op) override {
    check_dense(input, device_, "reduce_scatter");
    check_reduction(op, input.scalar_type());
    check_divides(input, world_size());
    CallRecord record = describe_call("reduce_scatter", input);
    record.reduce = op;
    const at::NoGradGuard no_grad;
    const at::Tensor work = plain(input);
    at::Tensor output = at::empty_like(work.narrow(0, 0, input.size(0) / world_size()), at::MemoryFormat::Contiguous);
    exchange(record, {work}, {}, op, [&](const RankGroup::Call& call, c10::Stream) {
      Reduction reduction = reduction_of(call, 0, rank_ * output.numel(), output.numel());
      reduction.outputs = {output.mutable_data_ptr()};
      if (reduction.count > 0) kernel_.reduce(reduction, stream_.stream().native_handle());
    });
    return output;
  }

  std::vector<at::Tensor> all_to_all(at::TensorList inputs) override {
    check_dense(inputs, device_, "all_to_all");
    check_one_a_rank(inputs, world_size());
    const auto record = describe_call("all_to_all", inputs, SizeCheck::none);
    const at::NoGradGuard no_grad;
    std::vector<at::Tensor> received;
    exchange(record, all_plain(inputs), {}, ReduceOp::sum, [&](const RankGroup::Call& call, c10::Stream compute) {
      for (int peer = 0; peer < world_size(); ++peer)
        received.push_back(copy_of(lent_by(call, peer).inputs[static_cast<std::size_t>(rank_)], compute));
    });
    return received;
  }

  void barrier() override {
    const trace::Range range(trace::Event::collective);
    group_.meet(rank_, CallRecord{.operation = "barrier"});
  }

 private:
  static const Lent& lent_by(const RankGroup::Call& call, int peer) { return *call.payload<const Lent*>(peer); }

  // Memory that the compute stream allocates, filled by the current one.
  at::Tensor copy_of(const at::Tensor& theirs, c10::Stream compute) const {
    at::Tensor copy;
    {
      const c10::StreamGuard on(compute);
      copy = at::empty(theirs.sizes(), theirs.options().device(device_));
    }
    return copy.copy_(theirs);
  }

  void reduce_into(const char* operation, at::TensorList inputs, at::TensorList outputs, ReduceOp op, int root) {
    check_dense(inputs, device_, operation);
    for (const at::Tensor& tensor : inputs) check_reduction(op, tensor.scalar_type());
    if (outputs.data() != inputs.data()) check_outputs(inputs, outputs, device_);
    CallRecord record = describe_call(operation, inputs);
    record.reduce = op;
    record.root = root;
    record.root_receives = true;
    const at::NoGradGuard no_grad;
    const auto from = all_plain(inputs), to = outputs.data() == inputs.data() ? from : all_plain(outputs);
    exchange(record, from, to, op, [&](const RankGroup::Call& call, c10::Stream) {
      reduce_share([&](int peer) -> const Lent& { return lent_by(call, peer); }, op, root);
    });
    if (root < 0 || root == rank_) copy_back(to, outputs);
  }

  // A call that all ranks make together: `enqueue` uses what they lend, on the communication stream; the compute stream
  // goes on when all ranks' streams are through with it.
  template <class Enqueue>
  void exchange(const CallRecord& record, const std::vector<at::Tensor>& inputs, const std::vector<at::Tensor>& outputs,
                ReduceOp op, const Enqueue& enqueue) {
    const trace::Range range(trace::Event::collective);
    const c10::Stream compute = stream_.compute();
    lent_.fill(inputs, outputs, op, compute);
    {
      const Lent* const mine = &lent_;
      const RankGroup::Call call(group_, rank_, record, &mine);
      for (int peer = 0; peer < world_size(); ++peer) lent_by(call, peer).ready.block(stream_.stream());
      const c10::StreamGuard on(stream_.stream());
      enqueue(call, compute);
      marks_.mark(rank_, stream_.stream());
    }
    let_compute_follow_all();
    lent_.inputs.clear();
    lent_.outputs.clear();
  }

  // Elements [begin, begin + count) of the ranks' i-th tensors.
  Reduction reduction_of(const RankGroup::Call& call, std::size_t i, std::int64_t begin, std::int64_t count) const {
    const Part& mine = lent_.input_parts[i];
    Reduction reduction{.count = static_cast<std::size_t>(count), .type = mine.type, .op = lent_.op};
    for (int peer = 0; peer < world_size(); ++peer)
      reduction.inputs.push_back(at_element(lent_by(call, peer).input_parts[i].data, mine.type, begin));
    return reduction;
  }

  // This rank's share of a reduction of what `of` tells of the ranks.
  template <class Lists>
  void reduce_share(const Lists& of, ReduceOp op, int root) {
    const auto& parts = of(rank_).input_parts;
    for_each_share(parts, rank_, world_size(), [&](std::size_t i, std::int64_t begin, std::int64_t end) {
      const ElementType type = parts[i].type;
      Reduction reduction{.count = static_cast<std::size_t>(end - begin), .type = type, .op = op};
      for (int peer = 0; peer < world_size(); ++peer) {
        const Lent& theirs = of(peer);
        reduction.inputs.push_back(at_element(theirs.input_parts[i].data, type, begin));
        if (root < 0 || root == peer) reduction.outputs.push_back(at_element(theirs.output_parts[i].data, type, begin));
      }
      kernel_.reduce(reduction, stream_.stream().native_handle());
    });
  }

  // This rank's part of the reductions that all have started, on the communication stream.
  void do_parts() {
    for (;;) {
      const PostedCalls::Part part(group_.posted(), rank_);
      if (!part) return;
      const auto of = [&](int peer) -> const Lent& { return part.template payload<Lent>(peer); };
      for (int peer = 0; peer < world_size(); ++peer) of(peer).ready.block(stream_.stream());
      reduce_share(of, of(rank_).op, -1);
      marks_.mark(rank_, stream_.stream());
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
  const int rank_;
  const c10::Device device_;
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
