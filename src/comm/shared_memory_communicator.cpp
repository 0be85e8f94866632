#include "comm/shared_memory_communicator.h"

#include <string>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "comm/check_tensors.h"
#include "comm/describe_call.h"
#include "comm/shared_reducer.h"
#include "tandem/core/error.h"
#include "tandem/trace/range.h"

namespace tandem::comm {

namespace {

// The memory of tensors as parts. Those that are not plain are there as plain copies, until `clear`.
class PartList {
 public:
  void fill(at::TensorList tensors) {
    for (const at::Tensor& tensor : tensors) {
      void* data = nullptr;
      if (is_plain(tensor)) {
        data = tensor.mutable_data_ptr();
      } else {
        copies_.push_back(plain(tensor));
        data = copies_.back().mutable_data_ptr();
      }
      parts_.push_back({data, tensor.numel(), element_type(tensor.scalar_type())});
    }
  }

  // Writes the copies back to the tensors that they are of.
  void copy_back(at::TensorList tensors) const {
    auto copy = copies_.begin();
    for (const at::Tensor& tensor : tensors)
      if (!is_plain(tensor)) tensor.detach().copy_(*copy++);
  }

  void clear() {
    parts_.clear();
    copies_.clear();
  }

  std::span<const Part> parts() const { return parts_; }

 private:
  std::vector<Part> parts_;
  std::vector<at::Tensor> copies_;
};

// A reduction that was started, with all that it needs until it is done.
struct Started {
  std::vector<at::Tensor> inputs, outputs, squares;
  std::vector<Part> from, to;
  std::vector<double*> squares_to;
  SharedReducer::Started lent;
  std::uint64_t number = 0;

  void fill(at::TensorList from_tensors, at::TensorList to_tensors, ReduceOp op, at::TensorList squares_tensors) {
    inputs.assign(from_tensors.begin(), from_tensors.end());
    outputs.assign(to_tensors.begin(), to_tensors.end());
    squares.assign(squares_tensors.begin(), squares_tensors.end());
    from.clear();
    to.clear();
    squares_to.clear();
    for (const at::Tensor& output : outputs) to.push_back(part(output, output.mutable_data_ptr()));
    // An input that is no output may be memory that is copied when it is written to.
    for (const at::Tensor& input : inputs) from.push_back(part(input, const_cast<void*>(input.const_data_ptr())));
    for (const at::Tensor& one : squares) squares_to.push_back(one.mutable_data_ptr<double>());
    lent = {from, to, op, squares_to};
  }

  void clear() {
    inputs.clear();
    outputs.clear();
    squares.clear();
  }

 private:
  static Part part(const at::Tensor& tensor, void* data) {
    return {data, tensor.numel(), element_type(tensor.scalar_type())};
  }
};

class SharedMemoryCommunicator final : public Communicator {
 public:
  SharedMemoryCommunicator(RankGroup& group, int rank) : group_(group), rank_(rank), reducer_(group, rank) {}

  ~SharedMemoryCommunicator() override {
    if (started_.empty()) return;
    // The others may be about to read memory that goes now.
    group_.token().cancel(std::make_exception_ptr(CollectiveError("rank " + std::to_string(rank_) +
                                                                  " ended while its gradients were being reduced")),
                          rank_);
    group_.posted().withdraw(rank_);
  }

  int rank() const override { return rank_; }
  int world_size() const override { return group_.world_size(); }

  void all_reduce(at::TensorList inputs, at::TensorList outputs, ReduceOp op) override {
    reduce_into("all_reduce", inputs, outputs, op, -1);
  }

  bool shares_memory() const override { return true; }

  using Communicator::start_all_reduce;
  std::uint64_t start_all_reduce(at::TensorList inputs, at::TensorList outputs, ReduceOp op,
                                 at::TensorList squares) override {
    check_rows(inputs, outputs, at::kCPU);
    for (const at::Tensor& tensor : inputs) check_reduction(op, tensor.scalar_type());
    const at::NoGradGuard no_grad;
    CallRecord record = describe_call("all_reduce", inputs, SizeCheck::elements);
    record.reduce = op;
    if (spare_.empty()) spare_.push_back(std::make_unique<Started>());
    started_.push_back(std::move(spare_.back()));
    spare_.pop_back();
    Started& started = *started_.back();
    started.fill(inputs, outputs, op, squares);
    return started.number = reducer_.start(record, started.lent);
  }

  void wait(std::uint64_t number) override {
    if (number == 0) return;
    reducer_.wait(number);
    end_started(number);
  }

  bool try_wait(std::uint64_t number) override {
    if (number == 0) return true;
    const bool done = reducer_.try_wait(number);
    if (done) end_started(number);
    return done;
  }

  void forget_started() override {
    group_.posted().forget(rank_);
    started_.clear();
  }

  void reduce(at::TensorList tensors, ReduceOp op, int root) override {
    check_root(root, world_size(), "reduce");
    reduce_into("reduce", tensors, tensors, op, root);
  }

  void broadcast(at::TensorList tensors, int root) override {
    const trace::Range range(trace::Event::collective);
    check_dense(tensors, at::kCPU, "broadcast");
    check_root(root, world_size(), "broadcast");
    CallRecord record = describe_call("broadcast", tensors);
    record.root = root;
    const at::NoGradGuard no_grad;
    const RankGroup::Call call(group_, rank_, record, &tensors);
    if (rank_ == root) return;
    const auto& source = call.payload<at::TensorList>(root);
    // Ranks may share the memory of what they broadcast.
    for (std::size_t i = 0; i < tensors.size(); ++i)
      if (tensors[i].const_data_ptr() != source[i].const_data_ptr()) tensors[i].detach().copy_(source[i].detach());
  }

  std::vector<at::Tensor> all_gather(const at::Tensor& tensor) override {
    const trace::Range range(trace::Event::collective);
    check_dense(tensor, at::kCPU, "all_gather");
    const at::NoGradGuard no_grad;
    const at::Tensor input = tensor.detach();
    const auto record = describe_call("all_gather", tensor, SizeCheck::all_but_first_dim);
    const RankGroup::Call call(group_, rank_, record, &input);
    std::vector<at::Tensor> gathered;
    for (int peer = 0; peer < world_size(); ++peer)
      gathered.push_back(call.payload<at::Tensor>(peer).clone(at::MemoryFormat::Contiguous));
    return gathered;
  }

  at::Tensor reduce_scatter(const at::Tensor& input, ReduceOp op) override {
    const trace::Range range(trace::Event::collective);
    check_dense(input, at::kCPU, "reduce_scatter");
    check_reduction(op, input.scalar_type());
    check_divides(input, world_size());
    CallRecord record = describe_call("reduce_scatter", input);
    record.reduce = op;
    const at::NoGradGuard no_grad;
    const at::Tensor work = plain(input);
    auto sizes = input.sizes().vec();
    sizes[0] /= world_size();
    at::Tensor output = at::empty(sizes, input.options());
    const RankGroup::Call call(group_, rank_, record, &work);
    std::vector<const void*> inputs;
    for (int peer = 0; peer < world_size(); ++peer) inputs.push_back(call.payload<at::Tensor>(peer).const_data_ptr());
    void* const outputs[] = {output.mutable_data_ptr()};
    const std::int64_t begin = rank_ * output.numel();
    reduce_elements(element_type(work.scalar_type()), op, inputs, outputs, begin, begin + output.numel(), begin);
    return output;
  }

  std::vector<at::Tensor> all_to_all(at::TensorList inputs) override {
    const trace::Range range(trace::Event::collective);
    check_dense(inputs, at::kCPU, "all_to_all");
    check_one_a_rank(inputs, world_size());
    const auto record = describe_call("all_to_all", inputs, SizeCheck::none);
    const at::NoGradGuard no_grad;
    const RankGroup::Call call(group_, rank_, record, &inputs);
    std::vector<at::Tensor> received;
    for (int peer = 0; peer < world_size(); ++peer)
      received.push_back(call.payload<at::TensorList>(peer)[static_cast<std::size_t>(rank_)].detach().clone(
          at::MemoryFormat::Contiguous));
    return received;
  }

  void barrier() override {
    const trace::Range range(trace::Event::collective);
    group_.meet(rank_, CallRecord{.operation = "barrier"});
  }

 private:
  // The memory is ours again.
  void end_started(std::uint64_t number) {
    auto first = started_.begin();
    for (; first != started_.end() && (*first)->number <= number; ++first) {
      (*first)->clear();
      spare_.push_back(std::move(*first));
    }
    started_.erase(started_.begin(), first);
  }

  void reduce_into(const char* operation, at::TensorList inputs, at::TensorList outputs, ReduceOp op, int root) {
    const trace::Range range(trace::Event::collective);
    check_dense(inputs, at::kCPU, operation);
    for (const at::Tensor& tensor : inputs) check_reduction(op, tensor.scalar_type());
    const bool in_place = outputs.data() == inputs.data();
    if (!in_place) check_outputs(inputs, outputs, at::kCPU);
    CallRecord record = describe_call(operation, inputs);
    record.reduce = op;
    record.root = root;
    record.root_receives = true;
    const at::NoGradGuard no_grad;
    inputs_.clear();  // an exception may have left something
    outputs_.clear();
    inputs_.fill(inputs);
    if (!in_place) outputs_.fill(outputs);
    PartList& results = in_place ? inputs_ : outputs_;
    reducer_.reduce(record, inputs_.parts(), results.parts(), op, root);
    if (root < 0 || root == rank_) results.copy_back(outputs);
    inputs_.clear();
    outputs_.clear();
  }

  RankGroup& group_;
  int rank_;
  SharedReducer reducer_;
  PartList inputs_, outputs_;                      // of the current call
  std::vector<std::unique_ptr<Started>> started_;  // and not waited for, in order
  std::vector<std::unique_ptr<Started>> spare_;    // kept for their memory
};

}  // namespace

std::unique_ptr<Communicator> make_shared_memory_communicator(RankGroup& group, int rank) {
  return std::make_unique<SharedMemoryCommunicator>(group, rank);
}

}  // namespace tandem::comm
