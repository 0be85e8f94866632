#include "tandem/comm/shared_memory.h"

#include <algorithm>
#include <string>
#include <type_traits>

#include <ATen/Dispatch_v2.h>
#include <ATen/Functions.h>
#include <ATen/OpMathType.h>
#include <ATen/core/grad_mode.h>

#include "tandem/core/error.h"

namespace tandem::comm {

void check_reduction(ReduceOp op, c10::ScalarType type) {
  const std::string on = std::string(" of ") + c10::toString(type) + " tensors is not defined; ";
  switch (op) {
    case ReduceOp::sum: return;
    case ReduceOp::mean:
      if (c10::isFloatingType(type) || c10::isComplexType(type)) return;
      throw CollectiveError("the mean" + on + "convert them to a floating-point type, or use sum");
    case ReduceOp::max:
    case ReduceOp::min:
      if (!c10::isComplexType(type)) return;
      throw CollectiveError("max or min" + on + "use sum or mean");
  }
  throw CollectiveError("reduction " + std::to_string(static_cast<int>(op)) + " is unknown; use sum, mean, max or min");
}

namespace {

// Elements reduced at a time: the partial results of a block stay in the first-level cache.
constexpr std::int64_t kBlock = 2048;

template <class Accumulator, class Element>
void combine(Accumulator* total, const Element* values, std::int64_t n, ReduceOp op) {
  if constexpr (c10::is_complex<Element>::value) {
    for (std::int64_t i = 0; i < n; ++i) total[i] += static_cast<Accumulator>(values[i]);
  } else if constexpr (std::is_same_v<Element, bool>) {
    if (op == ReduceOp::min)
      for (std::int64_t i = 0; i < n; ++i) total[i] = total[i] && values[i];
    else
      for (std::int64_t i = 0; i < n; ++i) total[i] = total[i] || values[i];
  } else {
    const auto each = [&](auto function) {
      for (std::int64_t i = 0; i < n; ++i) total[i] = function(total[i], static_cast<Accumulator>(values[i]));
    };
    // A NaN on any rank makes the result NaN, as torch::max does.
    if (op == ReduceOp::max)
      each([](auto a, auto b) { return a > b || a != a ? a : b; });
    else if (op == ReduceOp::min)
      each([](auto a, auto b) { return a < b || a != a ? a : b; });
    else
      each([](auto a, auto b) { return static_cast<Accumulator>(a + b); });
  }
}

// Reduces elements [begin, end) of the `inputs` (one a rank) and writes them to the same place of all `outputs`.
template <class Element>
void reduce_range(std::span<const void* const> inputs, std::span<void* const> outputs, std::int64_t begin,
                  std::int64_t end, std::int64_t output_offset, ReduceOp op) {
  using Accumulator = at::opmath_type<Element>;
  alignas(64) Accumulator total[kBlock];
  for (std::int64_t at = begin; at < end; at += kBlock) {
    const std::int64_t n = std::min(kBlock, end - at);
    const auto* first = static_cast<const Element*>(inputs[0]) + at;
    for (std::int64_t i = 0; i < n; ++i) total[i] = static_cast<Accumulator>(first[i]);
    for (std::size_t rank = 1; rank < inputs.size(); ++rank)
      combine(total, static_cast<const Element*>(inputs[rank]) + at, n, op);
    if constexpr (!std::is_integral_v<Element>) {
      if (op == ReduceOp::mean) {
        // Exact for 2, 4 and 8 ranks, and the correctly rounded mean for others.
        const auto count = static_cast<Accumulator>(static_cast<double>(inputs.size()));
        for (std::int64_t i = 0; i < n; ++i) total[i] = total[i] / count;
      }
    }
    for (void* output : outputs) {
      auto* values = static_cast<Element*>(output) + (at - output_offset);
      for (std::int64_t i = 0; i < n; ++i) values[i] = static_cast<Element>(total[i]);
    }
  }
}

void reduce_range(c10::ScalarType type, std::span<const void* const> inputs, std::span<void* const> outputs,
                  std::int64_t begin, std::int64_t end, std::int64_t output_offset, ReduceOp op) {
  AT_DISPATCH_V2(type, "tandem::all_reduce",
                 AT_WRAP([&] { reduce_range<scalar_t>(inputs, outputs, begin, end, output_offset, op); }),
                 AT_EXPAND(AT_ALL_TYPES_AND_COMPLEX), AT_EXPAND(AT_BAREBONES_UNSIGNED_TYPES), at::kHalf, at::kBFloat16,
                 at::kBool);
}

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

class SharedMemoryCommunicator final : public Communicator {
 public:
  SharedMemoryCommunicator(RankGroup& group, int rank) : group_(group), rank_(rank) {}

  int rank() const override { return rank_; }
  int world_size() const override { return group_.world_size(); }

  void all_reduce(at::TensorList tensors, ReduceOp op) override {
    check_dense(tensors, "all_reduce");
    for (const at::Tensor& tensor : tensors) check_reduction(op, tensor.scalar_type());
    CallRecord record = describe_call(Operation::all_reduce, tensors);
    record.reduce = op;
    const at::NoGradGuard no_grad;
    work_.clear();
    for (const at::Tensor& tensor : tensors) work_.push_back(tensor.detach().contiguous());
    {
      const RankGroup::Call call(group_, rank_, record, &work_);
      if (world_size() > 1) reduce_my_share(call, op);
    }
    for (std::size_t i = 0; i < tensors.size(); ++i)
      if (!tensors[i].is_contiguous()) tensors[i].detach().copy_(work_[i]);
    work_.clear();
  }

  void broadcast(at::TensorList tensors, int root) override {
    check_dense(tensors, "broadcast");
    if (root < 0 || root >= world_size())
      throw CollectiveError("broadcast from rank " + std::to_string(root) + "; ranks are 0 to " +
                            std::to_string(world_size() - 1));
    CallRecord record = describe_call(Operation::broadcast, tensors);
    record.root = root;
    const at::NoGradGuard no_grad;
    const RankGroup::Call call(group_, rank_, record, &tensors);
    if (rank_ == root) return;
    const auto& source = call.payload<at::TensorList>(root);
    for (std::size_t i = 0; i < tensors.size(); ++i) tensors[i].detach().copy_(source[i].detach());
  }

  std::vector<at::Tensor> all_gather(const at::Tensor& tensor) override {
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
    check_dense(input, "reduce_scatter");
    check_reduction(op, input.scalar_type());
    if (input.dim() == 0 || input.size(0) % world_size() != 0)
      throw CollectiveError("reduce_scatter needs dim 0 divisible by " + std::to_string(world_size()) +
                            " ranks, got sizes " + c10::str(input.sizes()));
    CallRecord record = describe_call(Operation::reduce_scatter, input);
    record.reduce = op;
    const at::NoGradGuard no_grad;
    const at::Tensor work = input.detach().contiguous();
    auto sizes = input.sizes().vec();
    sizes[0] /= world_size();
    at::Tensor output = at::empty(sizes, input.options());
    const RankGroup::Call call(group_, rank_, record, &work);
    std::vector<const void*> inputs;
    for (int peer = 0; peer < world_size(); ++peer) inputs.push_back(call.payload<at::Tensor>(peer).const_data_ptr());
    void* const outputs[] = {output.mutable_data_ptr()};
    const std::int64_t begin = rank_ * output.numel();
    reduce_range(work.scalar_type(), inputs, outputs, begin, begin + output.numel(), begin, op);
    return output;
  }

  void barrier() override { group_.meet(rank_, CallRecord{.operation = Operation::barrier}); }

 private:
  // The tensors of a call count as one row of elements; this rank reduces its 1/R of it.
  void reduce_my_share(const RankGroup::Call& call, ReduceOp op) {
    std::int64_t total = 0;
    for (const at::Tensor& tensor : work_) total += tensor.numel();
    const std::int64_t share_begin = total * rank_ / world_size();
    const std::int64_t share_end = total * (rank_ + 1) / world_size();
    std::int64_t offset = 0;
    for (std::size_t i = 0; i < work_.size(); ++i) {
      const std::int64_t begin = std::max(share_begin - offset, std::int64_t{0});
      const std::int64_t end = std::min(share_end - offset, work_[i].numel());
      offset += work_[i].numel();
      if (begin >= end) continue;
      buffers_.clear();
      for (int peer = 0; peer < world_size(); ++peer)
        buffers_.push_back(call.payload<std::vector<at::Tensor>>(peer)[i].data_ptr());
      const std::span<const void* const> inputs(const_cast<const void* const*>(buffers_.data()), buffers_.size());
      reduce_range(work_[i].scalar_type(), inputs, buffers_, begin, end, 0, op);
    }
  }

  RankGroup& group_;
  int rank_;
  std::vector<at::Tensor> work_;  // this rank's tensors of the current call, contiguous; peers read it
  std::vector<void*> buffers_;    // scratch: the ranks' data pointers of one tensor
};

}  // namespace

std::unique_ptr<Communicator> make_shared_memory_communicator(RankGroup& group, int rank) {
  return std::make_unique<SharedMemoryCommunicator>(group, rank);
}

}  // namespace tandem::comm
