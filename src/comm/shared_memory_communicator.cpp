#include "comm/shared_memory_communicator.h"

#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "comm/check_tensors.h"
#include "comm/nodes/fields.h"
#include "comm/shared_memory.h"
#include "comm/shared_reducer.h"
#include "tandem/core/error.h"

namespace tandem::comm {

namespace {

// The memory of tensors as rows of elements. Those that are not plain are there as plain copies, until `clear`.
class MemoryRows {
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
      rows_.push_back({data, tensor.numel(), element_type(tensor.scalar_type())});
    }
  }

  // Writes the copies back to the tensors that they are of.
  void copy_back(at::TensorList tensors) const {
    auto copy = copies_.begin();
    for (const at::Tensor& tensor : tensors)
      if (!is_plain(tensor)) tensor.detach().copy_(*copy++);
  }

  void clear() {
    rows_.clear();
    copies_.clear();
  }

  std::span<const ElementRow> rows() const { return rows_; }

 private:
  std::vector<ElementRow> rows_;
  std::vector<at::Tensor> copies_;
};

// A tensor as bytes for other nodes: its sizes and its elements in order. Types are compared before.
void add_tensor(std::string& bytes, const at::Tensor& tensor) {
  const at::Tensor elements = tensor.resolve_conj().resolve_neg().contiguous();
  add_field(bytes, std::to_string(elements.dim()));
  for (const std::int64_t size : elements.sizes()) add_field(bytes, std::to_string(size));
  bytes.append(static_cast<const char*>(elements.const_data_ptr()), elements.nbytes());
}

// What add_tensor has made of as many tensors as `like`, of whose types they are, on `rank`.
std::vector<at::Tensor> tensors_of(std::string_view bytes, at::TensorList like, int rank) {
  std::vector<at::Tensor> tensors;
  for (const at::Tensor& one : like) {
    Fields fields(bytes, rank);
    std::vector<std::int64_t> sizes(static_cast<std::size_t>(fields.number(64)));
    for (std::int64_t& size : sizes) size = fields.number(std::int64_t{1} << 39);
    bytes = fields.rest();
    const at::Tensor tensor = at::empty(sizes, one.options().requires_grad(false));
    if (tensor.nbytes() > bytes.size())
      throw CollectiveError("rank " + std::to_string(rank) + " sent a tensor that is cut off");
    if (tensor.nbytes() > 0) std::memcpy(tensor.mutable_data_ptr(), bytes.data(), tensor.nbytes());
    bytes.remove_prefix(tensor.nbytes());
    tensors.push_back(tensor);
  }
  return tensors;
}

// A reduction that was started, with all that it needs until it is done.
struct StartedReduction {
  std::vector<at::Tensor> inputs, outputs, squares;
  std::vector<ElementRow> from, to;
  std::vector<double*> squares_to;
  SharedReducer::Lists lists;
  std::uint64_t number = 0;

  void fill(at::TensorList from_tensors, at::TensorList to_tensors, ReduceOp op, at::TensorList squares_tensors) {
    inputs.assign(from_tensors.begin(), from_tensors.end());
    outputs.assign(to_tensors.begin(), to_tensors.end());
    squares.assign(squares_tensors.begin(), squares_tensors.end());
    from.clear();
    to.clear();
    squares_to.clear();
    for (const at::Tensor& output : outputs) to.push_back(row(output, output.mutable_data_ptr()));
    // An input that is no output may be memory that is copied when it is written to.
    for (const at::Tensor& input : inputs) from.push_back(row(input, const_cast<void*>(input.const_data_ptr())));
    for (const at::Tensor& one : squares) squares_to.push_back(one.mutable_data_ptr<double>());
    lists = {from, to, op, squares_to};
  }

  void clear() {
    inputs.clear();
    outputs.clear();
    squares.clear();
  }

 private:
  static ElementRow row(const at::Tensor& tensor, void* data) {
    return {data, tensor.numel(), element_type(tensor.scalar_type())};
  }
};

constexpr std::int64_t kMost = 999'999'999'999;  // that a field holds

// What a rank says of a reduction that it has started.
void add_started(std::string& bytes, const StartedReduction& started) {
  if (started.number == 0) return;  // memory ran out before it was posted
  const auto add = [&bytes](auto number) { add_field(bytes, std::to_string(number)); };
  add(started.number);
  add(static_cast<int>(started.lists.op));
  add(started.squares.empty() ? 0 : 1);
  add(started.outputs.size());
  for (const at::Tensor& output : started.outputs) {
    add(static_cast<int>(output.scalar_type()));
    add(output.numel());
  }
}

// The same, as another rank reads it. Nothing in the bytes is trusted.
struct StartElsewhere {
  explicit StartElsewhere(Fields& fields)
      : op(static_cast<ReduceOp>(fields.number(static_cast<int>(ReduceOp::product)))), squared(fields.number(1) == 1) {
    constexpr auto kTypes = static_cast<int>(c10::ScalarType::NumOptions);
    for (std::int64_t left = fields.number(kMost); left > 0; --left) {
      const auto type = static_cast<c10::ScalarType>(fields.number(kTypes - 1));
      rows.emplace_back(type, fields.number(kMost));
    }
  }

  ReduceOp op;
  bool squared;
  std::vector<std::pair<c10::ScalarType, std::int64_t>> rows;  // types and lengths
};

class SharedMemoryCommunicator final : public Communicator, private SharedMemory {
 public:
  SharedMemoryCommunicator(RankGroup& group, int rank)
      : Communicator(rank, group.world_size(), at::kCPU), group_(group), reducer_(group, rank) {}

  ~SharedMemoryCommunicator() override {
    if (started_.empty()) return;
    // The others may be about to read memory that goes now.
    group_.token().cancel(std::make_exception_ptr(CollectiveError("rank " + std::to_string(rank()) +
                                                                  " ended while its gradients were being reduced")),
                          rank());
    group_.posted().withdraw(rank());
  }

 private:
  void do_all_reduce(const CallRecord& call, at::TensorList inputs, at::TensorList outputs, ReduceOp op) override {
    reduce_into(call, inputs, outputs, op, -1);
  }

  std::uint64_t do_start_all_reduce(const CallRecord& call, at::TensorList inputs, at::TensorList outputs,
                                    ReduceOp op) override {
    return start(call, inputs, outputs, {}, op);
  }

  SharedMemory* do_shared_memory() noexcept override { return this; }

  std::uint64_t start_with_squares(at::TensorList inputs, at::TensorList outputs, at::TensorList squares,
                                   ReduceOp op) override {
    const at::NoGradGuard no_grad;
    return start(describe_start(inputs, outputs, op), inputs, outputs, squares, op);
  }

  void do_wait(std::uint64_t number) override {
    if (number == 0) return;
    reducer_.wait(number);
    end_started(number);
  }

  bool do_try_wait(std::uint64_t number) override {
    if (number == 0) return true;
    const bool done = reducer_.try_wait(number);
    if (done) end_started(number);
    return done;
  }

  void do_forget_started() override {
    if (over_nodes())
      finish_started();
    else
      group_.posted().forget(rank());
    started_.clear();
  }

  void do_reduce(const CallRecord& call, at::TensorList tensors, ReduceOp op, int root) override {
    reduce_into(call, tensors, tensors, op, root);
  }

  void do_broadcast(const CallRecord& record, at::TensorList tensors, int root) override {
    if (over_nodes()) return broadcast_over_nodes(record, tensors, root);
    const RankGroup::Call call(group_, rank(), record, &tensors);
    if (rank() == root) return;
    const auto& source = call.payload<at::TensorList>(root);
    // Ranks may share the memory of what they broadcast.
    for (std::size_t i = 0; i < tensors.size(); ++i)
      if (tensors[i].const_data_ptr() != source[i].const_data_ptr()) tensors[i].detach().copy_(source[i].detach());
  }

  std::vector<at::Tensor> do_all_gather(const CallRecord& record, const at::Tensor& tensor) override {
    const at::Tensor input = tensor.detach();
    if (over_nodes()) {
      std::vector<at::Tensor> gathered;
      for (auto& of_rank : gather_over_nodes(record, input)) gathered.push_back(std::move(of_rank.front()));
      return gathered;
    }
    const RankGroup::Call call(group_, rank(), record, &input);
    std::vector<at::Tensor> gathered;
    for (int peer = 0; peer < world_size(); ++peer)
      gathered.push_back(call.payload<at::Tensor>(peer).clone(at::MemoryFormat::Contiguous));
    return gathered;
  }

  at::Tensor do_reduce_scatter(const CallRecord& record, const at::Tensor& input, ReduceOp op) override {
    const at::Tensor work = plain(input);
    auto sizes = input.sizes().vec();
    sizes[0] /= world_size();
    at::Tensor output = at::empty(sizes, input.options());
    if (over_nodes()) {
      const at::Tensor whole = at::empty_like(work);
      reduce_into(record, work, whole, op, -1);
      return output.copy_(whole.narrow(0, rank() * sizes[0], sizes[0]));
    }
    const RankGroup::Call call(group_, rank(), record, &work);
    std::vector<const void*> inputs;
    for (int peer = 0; peer < world_size(); ++peer) inputs.push_back(call.payload<at::Tensor>(peer).const_data_ptr());
    void* const outputs[] = {output.mutable_data_ptr()};
    const std::int64_t begin = rank() * output.numel();
    reduce_elements(element_type(work.scalar_type()), op, inputs, outputs, begin, begin + output.numel(), begin);
    return output;
  }

  std::vector<at::Tensor> do_all_to_all(const CallRecord& record, at::TensorList inputs) override {
    std::vector<at::Tensor> received;
    if (over_nodes()) {
      for (const auto& of_rank : gather_over_nodes(record, inputs))
        received.push_back(of_rank[static_cast<std::size_t>(rank())]);
      return received;
    }
    const RankGroup::Call call(group_, rank(), record, &inputs);
    for (int peer = 0; peer < world_size(); ++peer)
      received.push_back(call.payload<at::TensorList>(peer)[static_cast<std::size_t>(rank())].detach().clone(
          at::MemoryFormat::Contiguous));
    return received;
  }

  void do_barrier(const CallRecord& call) override { group_.meet(rank(), call); }

  bool over_nodes() const { return group_.place().nodes > 1; }

  // One rank of each node gets the root's bytes and gives them to the others.
  void broadcast_over_nodes(const CallRecord& record, at::TensorList tensors, int root) {
    using Rows = std::vector<std::span<std::byte>>;
    const std::vector<at::Tensor> elements = all_plain(tensors);
    Rows rows;
    for (const at::Tensor& one : elements)
      rows.emplace_back(static_cast<std::byte*>(one.mutable_data_ptr()), one.nbytes());
    group_.carry(rank(), record, &rows, [&](const RankGroup::Call& call, NodeExchange& nodes) {
      const NodePlace& place = nodes.place();
      const int root_node = nodes.node_of(root), source = root_node == place.node ? root : place.first_rank;
      const Rows& from = call.payload<Rows>(source);
      nodes.broadcast(root_node, from);
      for (int i = place.first_rank; i < place.first_rank + place.local_ranks; ++i)
        for (std::size_t row = 0; row < from.size(); ++row)
          if (const auto to = call.payload<Rows>(i)[row]; to.data() != from[row].data() && !to.empty())
            std::memcpy(to.data(), from[row].data(), to.size());
    });
    if (rank() != root) copy_back(elements, tensors);
  }

  // The tensors of all ranks, by rank.
  std::vector<std::vector<at::Tensor>> gather_over_nodes(const CallRecord& record, at::TensorList tensors) {
    std::string mine;
    for (const at::Tensor& tensor : tensors) add_tensor(mine, tensor);
    const auto all = group_.gather_bytes(rank(), record, mine);
    std::vector<std::vector<at::Tensor>> of_ranks;
    for (const std::string& bytes : all)
      of_ranks.push_back(tensors_of(bytes, tensors, static_cast<int>(of_ranks.size())));
    return of_ranks;
  }

  // A node has sent others its part of what its ranks have started, and waits for theirs. So all take part in it, with
  // zeros where this rank has not started it, for results that nobody wants.
  void finish_started() {
    std::string mine;
    for (const auto& started : started_) add_started(mine, *started);
    const auto all = group_.gather_bytes(rank(), {.operation = "forget_started"}, mine);
    std::map<std::uint64_t, StartElsewhere> others;
    for (std::size_t peer = 0; peer < all.size(); ++peer)
      for (Fields fields(all[peer], static_cast<int>(peer)); !fields.rest().empty();) {
        const auto number = static_cast<std::uint64_t>(fields.number(kMost));
        others.insert_or_assign(number, StartElsewhere(fields));
      }
    for (const auto& [number, other] : others)
      if (number > last_started_) start_with_zeros(other);
    reducer_.wait(last_started_);
  }

  void start_with_zeros(const StartElsewhere& other) {
    std::vector<at::Tensor> zeros, squares;
    for (const auto& [type, elements] : other.rows) {
      zeros.push_back(at::zeros({elements}, type));
      if (other.squared)
        squares.push_back(at::empty({(elements + kReductionBlock - 1) / kReductionBlock}, at::kDouble));
    }
    start(describe_start(zeros, zeros, other.op), zeros, zeros, squares, other.op);
  }

  // The memory is ours again.
  void end_started(std::uint64_t number) {
    auto first = started_.begin();
    for (; first != started_.end() && (*first)->number <= number; ++first) {
      (*first)->clear();
      spare_.push_back(std::move(*first));
    }
    started_.erase(started_.begin(), first);
  }

  std::uint64_t start(const CallRecord& call, at::TensorList inputs, at::TensorList outputs, at::TensorList squares,
                      ReduceOp op) {
    if (spare_.empty()) spare_.push_back(std::make_unique<StartedReduction>());
    started_.push_back(std::move(spare_.back()));
    spare_.pop_back();
    StartedReduction& started = *started_.back();
    started.number = 0;
    started.fill(inputs, outputs, op, squares);
    return last_started_ = started.number = reducer_.start(call, started.lists);
  }

  void reduce_into(const CallRecord& call, at::TensorList inputs, at::TensorList outputs, ReduceOp op, int root) {
    const bool in_place = outputs.data() == inputs.data();
    inputs_.clear();  // an exception may have left something
    outputs_.clear();
    inputs_.fill(inputs);
    if (!in_place) outputs_.fill(outputs);
    MemoryRows& results = in_place ? inputs_ : outputs_;
    reducer_.reduce(call, inputs_.rows(), results.rows(), op, root);
    if (root < 0 || root == rank()) results.copy_back(outputs);
    inputs_.clear();
    outputs_.clear();
  }

  RankGroup& group_;
  SharedReducer reducer_;
  MemoryRows inputs_, outputs_;                             // of the current call
  std::vector<std::unique_ptr<StartedReduction>> started_;  // and not waited for, in order
  std::vector<std::unique_ptr<StartedReduction>> spare_;    // kept for their memory
  std::uint64_t last_started_ = 0;
};

}  // namespace

std::unique_ptr<Communicator> make_shared_memory_communicator(RankGroup& group, int rank) {
  return std::make_unique<SharedMemoryCommunicator>(group, rank);
}

}  // namespace tandem::comm
