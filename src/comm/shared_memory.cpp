#include "tandem/comm/shared_memory.h"

#include <string>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "tandem/comm/describe_call.h"
#include "tandem/comm/shared_reducer.h"
#include "tandem/core/error.h"
#include "tandem/trace/range.h"

namespace tandem::comm {

void check_reduction(ReduceOp op, c10::ScalarType type) {
  const auto not_defined = [&](const char* what, const char* instead) {
    return CollectiveError(std::string(what) + " of " + c10::toString(type) + " tensors is not defined; " + instead);
  };
  switch (op) {
    case ReduceOp::sum:
    case ReduceOp::product: return;
    case ReduceOp::mean:
      if (c10::isFloatingType(type) || c10::isComplexType(type)) return;
      throw not_defined("the mean", "convert them to a floating-point type, or use sum");
    case ReduceOp::max:
    case ReduceOp::min:
      if (!c10::isComplexType(type)) return;
      throw not_defined("max or min", "use sum or mean");
  }
  throw CollectiveError("reduction " + std::to_string(static_cast<int>(op)) +
                        " is unknown; use sum, mean, max, min or product");
}

ElementType element_type(c10::ScalarType type) {
  switch (type) {
    case at::kFloat: return ElementType::float32;
    case at::kDouble: return ElementType::float64;
    case at::kHalf: return ElementType::float16;
    case at::kBFloat16: return ElementType::bfloat16;
    case at::kComplexFloat: return ElementType::complex64;
    case at::kComplexDouble: return ElementType::complex128;
    case at::kChar: return ElementType::int8;
    case at::kShort: return ElementType::int16;
    case at::kInt: return ElementType::int32;
    case at::kLong: return ElementType::int64;
    case at::kByte: return ElementType::uint8;
    case at::kUInt16: return ElementType::uint16;
    case at::kUInt32: return ElementType::uint32;
    case at::kUInt64: return ElementType::uint64;
    case at::kBool: return ElementType::boolean;
    default:
      throw CollectiveError(std::string("tensors of type ") + c10::toString(type) +
                            " cannot be reduced; convert them to a floating-point, complex, integer or bool type");
  }
}

namespace {

void check_dense(at::TensorList tensors, const char* operation) {
  for (const at::Tensor& tensor : tensors) {
    if (!tensor.defined()) throw CollectiveError(std::string(operation) + " got an undefined tensor");
    if (tensor.layout() != at::kStrided)
      throw CollectiveError(std::string(operation) + " needs dense tensors, got " + c10::str(tensor.layout()) +
                            "; call to_dense() first");
    if (!tensor.device().is_cpu())
      throw CollectiveError(std::string(operation) + " between CPU ranks got a tensor on " + tensor.device().str());
  }
}

void check_root(int root, int world_size, const char* operation) {
  if (root < 0 || root >= world_size)
    throw CollectiveError(std::string(operation) + " with root " + std::to_string(root) + "; ranks are 0 to " +
                          std::to_string(world_size - 1));
}

// Whether a tensor's memory is its elements, in order: conjugation and negation may be pending.
bool is_plain(const at::Tensor& tensor) { return tensor.is_contiguous() && !tensor.is_conj() && !tensor.is_neg(); }

at::Tensor plain(const at::Tensor& tensor) {
  const at::Tensor detached = tensor.detach();
  return is_plain(tensor) ? detached : detached.clone(at::MemoryFormat::Contiguous).resolve_conj().resolve_neg();
}

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
    reduce_into(Operation::all_reduce, inputs, outputs, op, -1);
  }

  bool shares_memory() const override { return true; }

  using Communicator::start_all_reduce;
  std::uint64_t start_all_reduce(at::TensorList inputs, at::TensorList outputs, ReduceOp op,
                                 at::TensorList squares) override {
    check_rows(inputs, outputs);
    for (const at::Tensor& tensor : inputs) check_reduction(op, tensor.scalar_type());
    const at::NoGradGuard no_grad;
    CallRecord record = describe_call(Operation::all_reduce, inputs, SizeCheck::elements);
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
    reduce_into(Operation::reduce, tensors, tensors, op, root);
  }

  void broadcast(at::TensorList tensors, int root) override {
    const trace::Range range(trace::Event::collective);
    check_dense(tensors, "broadcast");
    check_root(root, world_size(), "broadcast");
    CallRecord record = describe_call(Operation::broadcast, tensors);
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
    check_dense(tensor, "all_gather");
    const at::NoGradGuard no_grad;
    const at::Tensor input = tensor.detach();
    const auto record = describe_call(Operation::all_gather, tensor, SizeCheck::all_but_first_dim);
    const RankGroup::Call call(group_, rank_, record, &input);
    std::vector<at::Tensor> gathered;
    for (int peer = 0; peer < world_size(); ++peer)
      gathered.push_back(call.payload<at::Tensor>(peer).clone(at::MemoryFormat::Contiguous));
    return gathered;
  }

  at::Tensor reduce_scatter(const at::Tensor& input, ReduceOp op) override {
    const trace::Range range(trace::Event::collective);
    check_dense(input, "reduce_scatter");
    check_reduction(op, input.scalar_type());
    if (input.dim() == 0 || input.size(0) % world_size() != 0)
      throw CollectiveError("reduce_scatter needs dim 0 divisible by " + std::to_string(world_size()) +
                            " ranks, got sizes " + c10::str(input.sizes()));
    CallRecord record = describe_call(Operation::reduce_scatter, input);
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
    check_dense(inputs, "all_to_all");
    if (static_cast<int>(inputs.size()) != world_size())
      throw CollectiveError("all_to_all needs a tensor a rank, " + std::to_string(world_size()) + ", got " +
                            std::to_string(inputs.size()));
    const auto record = describe_call(Operation::all_to_all, inputs, SizeCheck::none);
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
    group_.meet(rank_, CallRecord{.operation = Operation::barrier});
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

  void reduce_into(Operation operation, at::TensorList inputs, at::TensorList outputs, ReduceOp op, int root) {
    const trace::Range range(trace::Event::collective);
    check_dense(inputs, to_string(operation));
    for (const at::Tensor& tensor : inputs) check_reduction(op, tensor.scalar_type());
    const bool in_place = outputs.data() == inputs.data();
    if (!in_place) check_outputs(inputs, outputs);
    CallRecord record = describe_call(operation, inputs);
    record.reduce = op;
    record.root = root;
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

  static void check_rows(at::TensorList inputs, at::TensorList outputs) {
    check_dense(inputs, "all_reduce");
    check_dense(outputs, "all_reduce");
    if (inputs.size() != outputs.size())
      throw CollectiveError("all_reduce of " + std::to_string(inputs.size()) + " tensors into " +
                            std::to_string(outputs.size()));
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (inputs[i].numel() != outputs[i].numel() || inputs[i].scalar_type() != outputs[i].scalar_type())
        throw_unlike(inputs[i], outputs[i]);
      if (!inputs[i].is_non_overlapping_and_dense() || !outputs[i].is_non_overlapping_and_dense())
        throw CollectiveError(
            "a reduction cannot be started on tensors with gaps or overlaps in memory; use all_reduce");
    }
  }

  [[noreturn]] static void throw_unlike(const at::Tensor& input, const at::Tensor& output) {
    throw CollectiveError("all_reduce of " + c10::str(input.scalar_type(), input.sizes()) + " into " +
                          c10::str(output.scalar_type(), output.sizes()) + "; they must be alike");
  }

  static void check_outputs(at::TensorList inputs, at::TensorList outputs) {
    check_dense(outputs, "all_reduce");
    if (inputs.size() != outputs.size())
      throw CollectiveError("all_reduce of " + std::to_string(inputs.size()) + " tensors into " +
                            std::to_string(outputs.size()));
    for (std::size_t i = 0; i < inputs.size(); ++i)
      if (inputs[i].sizes() != outputs[i].sizes() || inputs[i].scalar_type() != outputs[i].scalar_type())
        throw_unlike(inputs[i], outputs[i]);
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
