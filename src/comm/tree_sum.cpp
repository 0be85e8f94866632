#include "comm/tree_sum.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "comm/check_tensors.h"
#include "comm/shares.h"
#include "comm/sparse.h"
#include "tandem/comm/detail/objects.h"
#include "tandem/comm/reduction.h"

namespace tandem::comm {
namespace {

// Elements of a task: what its leaves and nodes take stays in a core's cache.
constexpr std::int64_t kElementsAtOnce = std::int64_t{1} << 15;

enum class Layout : std::uint8_t { none, sparse, dense };  // what counts on all ranks is the last that one has

struct Kind {
  Layout layout = Layout::none;
  std::int64_t sparse_dims = 0;
};
using Kinds = std::vector<Kind>;

std::string to_bytes(const Kind& kind) { return pack(kind.layout, kind.sparse_dims); }

void from_bytes(std::string_view bytes, Kind& kind) { unpack(bytes, kind.layout, kind.sparse_dims); }

Kind kind_of(const at::Tensor& tensor) {
  if (!tensor.defined()) return {};
  if (!tensor.is_sparse()) return {Layout::dense};
  return {Layout::sparse, tensor.sparse_dim()};
}

// What a rank shows the others.
struct Row {
  std::vector<at::Tensor> terms;    // undefined: the rank has none
  std::vector<at::Tensor> sums;     // undefined: nobody has one, or each rank makes its own
  std::vector<at::Tensor> squares;  // undefined: nobody asks
};

at::Tensor elements(const at::Tensor& tensor, std::int64_t begin, std::int64_t end) {
  const std::int64_t offset = tensor.storage_offset() + begin;
  return at::empty({0}, tensor.options().requires_grad(false)).set_(tensor.storage(), offset, {end - begin}, {1});
}

void multiply(const at::Tensor& to, const at::Tensor& sum, double factor) {
  at::mul_out(const_cast<at::Tensor&>(to), sum, at::scalar_tensor(factor, at::dtype(at::kDouble)));
}

// `begin` is a multiple of kReductionBlock.
void add_up_squares(const at::Tensor& squares, const at::Tensor& sum, std::int64_t begin) {
  const auto type = element_type(sum.scalar_type());
  const auto* const data = static_cast<const std::byte*>(sum.const_data_ptr());
  double* to = squares.mutable_data_ptr<double>() + begin / kReductionBlock;
  for (std::int64_t at = 0; at < sum.numel(); at += kReductionBlock)
    *to++ = sum_of_squares(type, data + at * sum.element_size(), std::min(kReductionBlock, sum.numel() - at));
}

void sum_elements(const std::vector<const Row*>& rows, std::size_t i, std::int64_t begin, std::int64_t end,
                  double factor) {
  std::vector<at::Tensor> leaves;
  for (const Row* row : rows)
    leaves.push_back(row->terms[i].defined() ? elements(row->terms[i], begin, end) : at::Tensor());
  const at::Tensor sum = elements(rows.front()->sums[i], begin, end);
  multiply(sum, tree_sum(std::move(leaves)), factor);
  const auto asks = std::find_if(rows.begin(), rows.end(), [i](const Row* row) { return row->squares[i].defined(); });
  if (asks != rows.end()) add_up_squares((*asks)->squares[i], sum, begin);
  for (const Row* row : rows)
    if (row->sums[i].const_data_ptr() != rows.front()->sums[i].const_data_ptr())
      elements(row->sums[i], begin, end).copy_(sum);
}

std::vector<at::Tensor> sum_sparse(const std::vector<const Row*>& rows, const Kinds& kinds, double factor) {
  std::vector<at::Tensor> sums(kinds.size());
  for (std::size_t i = 0; i < kinds.size(); ++i) {
    if (kinds[i].layout != Layout::sparse) continue;
    std::vector<at::Tensor> leaves;
    for (const Row* row : rows) leaves.push_back(row->terms[i]);
    sums[i] = tree_sum(std::move(leaves)).coalesce().mul(factor);
  }
  return sums;
}

std::vector<at::Tensor> sum_of_one(const Row& row, const Kinds& kinds, double factor) {
  std::vector<at::Tensor> sums = sum_sparse({&row}, kinds, factor);
  for (std::size_t i = 0; i < sums.size(); ++i) {
    if (!row.sums[i].defined()) continue;
    sums[i] = row.sums[i];
    multiply(sums[i], row.terms[i], factor);
  }
  return sums;
}

std::vector<at::Tensor> sum_in_shared_memory(Communicator& communicator, RankGroup& group, const Row& mine,
                                             const Kinds& kinds, double factor) {
  std::vector<ElementRow> parts;
  for (const at::Tensor& sum : mine.sums) parts.push_back({nullptr, sum.defined() ? sum.numel() : 0, {}});
  const RankGroup::Call call(group, communicator.rank(), {.operation = "reduce_gradients"}, &mine);
  std::vector<const Row*> rows;
  for (int rank = 0; rank < group.world_size(); ++rank) rows.push_back(&call.payload<Row>(rank));
  for_each_share(parts, communicator.rank(), group.world_size(),
                 [&](std::size_t i, std::int64_t begin, std::int64_t end) {
                   for (; begin < end; begin += kElementsAtOnce)
                     sum_elements(rows, i, begin, std::min(begin + kElementsAtOnce, end), factor);
                 });
  std::vector<at::Tensor> sums = sum_sparse(rows, kinds, factor);
  for (std::size_t i = 0; i < sums.size(); ++i)
    if (mine.sums[i].defined()) sums[i] = mine.sums[i];
  return sums;
}

at::Tensor sparse_from(const at::Tensor& like, const at::Tensor& indices, const at::Tensor& values) {
  return at::sparse_coo_tensor(indices.t(), values, like.sizes(), like.options().layout(at::kSparse))._coalesced_(true);
}

// Every rank's `term`, by rank; a dense one as a row of elements.
std::vector<at::Tensor> gather(Communicator& communicator, const at::Tensor& term, bool sparse) {
  if (!sparse) return communicator.all_gather(elements(term, 0, term.numel()));
  const at::Tensor coalesced = term.coalesce();
  const auto indices = communicator.all_gather(coalesced.indices().t().contiguous());
  const auto values = communicator.all_gather(coalesced.values());
  std::vector<at::Tensor> leaves;
  for (std::size_t rank = 0; rank < indices.size(); ++rank)
    leaves.push_back(sparse_from(term, indices[rank], values[rank]));
  return leaves;
}

std::vector<at::Tensor> sum_gathered(Communicator& communicator, const Row& mine, const std::vector<Kinds>& of_ranks,
                                     const Kinds& kinds, const std::vector<at::Tensor>& like, double factor) {
  std::vector<at::Tensor> sums = mine.sums;
  for (std::size_t i = 0; i < kinds.size(); ++i) {
    if (kinds[i].layout == Layout::none) continue;
    const bool sparse = kinds[i].layout == Layout::sparse;
    at::Tensor term = mine.terms[i];
    if (!term.defined()) term = sparse ? no_entries(like[i], kinds[i].sparse_dims) : sums[i];
    auto leaves = gather(communicator, term, sparse);
    for (std::size_t rank = 0; rank < leaves.size(); ++rank)
      if (of_ranks[rank][i].layout == Layout::none) leaves[rank] = at::Tensor();
    const at::Tensor sum = tree_sum(std::move(leaves)).mul(factor);
    if (sparse)
      sums[i] = sum;
    else
      elements(sums[i], 0, sums[i].numel()).copy_(sum);
  }
  return sums;
}

// As this rank shows its tensors: dense ones in memory as `like` lies there.
Row row_of(std::vector<at::Tensor> tensors, const std::vector<at::Tensor>& like, const Kinds& kinds,
           const std::vector<CommonSum>& common) {
  Row row{std::move(tensors), std::vector<at::Tensor>(like.size()), std::vector<at::Tensor>(like.size())};
  for (std::size_t i = 0; i < like.size(); ++i) {
    at::Tensor& term = row.terms[i];
    const bool is_ours = term.defined() && is_alone(term);
    if (term.defined() && term.requires_grad()) term = term.detach();
    if (kinds[i].layout != Layout::dense) continue;
    const auto options = like[i].options().requires_grad(false);
    const at::Tensor place = at::empty_like(like[i], options.device(at::kMeta));
    const bool lies_alike = term.defined() && term.layout() == at::kStrided && !term.is_conj() && !term.is_neg() &&
                            term.strides() == place.strides();
    if (common[i].memory.defined()) {
      row.sums[i] = common[i].memory;
      row.squares[i] = common[i].squares;
    } else {
      row.sums[i] = lies_alike && is_ours ? term : at::empty_like(like[i], options);
    }
    if (!term.defined() || lies_alike) continue;
    if (term.is_sparse()) term = term.to_dense();
    term = at::empty_like(row.sums[i]).copy_(term);
  }
  return row;
}

Kinds kinds_of_all(const std::vector<Kinds>& of_ranks) {
  Kinds kinds = of_ranks.front();
  for (const Kinds& of_rank : of_ranks)
    for (std::size_t i = 0; i < kinds.size(); ++i)
      if (of_rank.at(i).layout > kinds[i].layout) kinds[i] = of_rank[i];
  return kinds;
}

}  // namespace

bool is_alone(const at::Tensor& tensor) {
  return tensor.use_count() == 1 && (!tensor.has_storage() || tensor.storage().use_count() == 1);
}

at::Tensor sum_of_nodes(const at::Tensor& left, const at::Tensor& right, bool overwrites_left) {
  if (!left.defined() || !right.defined()) return left.defined() ? left : right;
  // Before too, or the order in which entries of one place add up would depend on who has coalesced them already.
  if (left.is_sparse() && right.is_sparse()) return (left.coalesce() + right.coalesce()).coalesce();
  if (left.is_sparse() || right.is_sparse()) {
    const auto dense = [](const at::Tensor& node) { return node.is_sparse() ? node.to_dense() : node; };
    return dense(left) + dense(right);
  }
  return overwrites_left ? at::Tensor(left).add_(right) : at::add(left, right);
}

at::Tensor tree_sum(std::vector<at::Tensor> leaves) {
  std::vector<bool> own(leaves.size(), false);  // nodes that were made here
  for (std::size_t half = leaves.size() / 2; half > 0; half /= 2)
    for (std::size_t i = 0; i < half; ++i) {
      const bool both = leaves[i].defined() && leaves[i + half].defined();
      if (!leaves[i].defined()) own[i] = own[i + half];
      leaves[i] = sum_of_nodes(leaves[i], leaves[i + half], both && own[i]);
      own[i] = own[i] || both;
    }
  return leaves.front();
}

std::vector<at::Tensor> tree_sum_over_ranks(Communicator& communicator, RankGroup& group,
                                            std::vector<at::Tensor> tensors, const std::vector<at::Tensor>& like,
                                            double factor, const CommonSums& common) {
  const at::NoGradGuard no_grad;
  Kinds mine;
  for (const at::Tensor& tensor : tensors) mine.push_back(kind_of(tensor));
  const bool alone = communicator.world_size() == 1;
  const auto of_ranks = alone ? std::vector<Kinds>{mine} : detail::gather_objects(group, communicator.rank(), mine);
  const Kinds kinds = kinds_of_all(of_ranks);
  std::vector<bool> dense;
  for (const Kind& kind : kinds) dense.push_back(kind.layout == Layout::dense);
  const bool share_memory = communicator.shares_memory() && group.place().nodes == 1;
  const bool in_common = common && !alone && share_memory;
  const Row row =
      row_of(std::move(tensors), like, kinds, in_common ? common(dense) : std::vector<CommonSum>(like.size()));
  if (alone) return sum_of_one(row, kinds, factor);
  return share_memory ? sum_in_shared_memory(communicator, group, row, kinds, factor)
                      : sum_gathered(communicator, row, of_ranks, kinds, like, factor);
}

}  // namespace tandem::comm
