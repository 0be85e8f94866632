// The collectives over tensors and numbers. Each first agrees with the other ranks that all give the same; from then on
// nothing that a rank gave can fail.
#include <algorithm>
#include <cmath>
#include <optional>

#include <ATen/Functions.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/core/grad_mode.h>

#include "comm/agree.h"
#include "comm/check_tensors.h"
#include "comm/describe_call.h"
#include "core/word_hash.h"
#include "runtime/rank_context.h"
#include "runtime/reduce_numbers.h"
#include "tandem/core/error.h"
#include "tandem/runtime/rank.h"
#include "tandem/trace/range.h"

namespace tandem {
namespace {

using comm::CallRecord;
using comm::describe_call;
using comm::SizeCheck;
using detail::Number;
using detail::Numbers;
using detail::ValueParts;

// The operation without what it is of: "all_reduce(mean)".
std::string name_of(const CallRecord& record, std::optional<std::int64_t> dim) {
  const CallRecord bare{.operation = record.operation, .reduce = record.reduce, .root = record.root};
  return to_string(bare) + (dim ? "(dim " + std::to_string(*dim) + ")" : "");
}

void check_defined(const ValueParts& parts, const char* operation) {
  if (parts.undefined) throw CollectiveError(std::string(operation) + " got an undefined tensor");
}

// `lengths`: rows of numbers are as long on all ranks. `dim`: that the call goes by.
void agree_on(RankContext& context, const ValueParts& parts, CallRecord record, bool lengths,
              const std::exception_ptr& refusal, std::optional<std::int64_t> dim = {}) {
  WordHash hash(parts.structure);
  hash.add(record.signature);
  hash.add(static_cast<std::uint64_t>(record.elements));
  hash.add(static_cast<std::uint64_t>(record.reduce));
  hash.add(static_cast<std::uint64_t>(record.root));
  hash.add(static_cast<std::uint64_t>(dim.value_or(0)));
  for (const at::Tensor& tensor : parts.tensors) {
    hash.add(static_cast<std::uint64_t>(tensor.device().type()));
    hash.add(static_cast<std::uint64_t>(tensor.dim()));
  }
  for (const Numbers& numbers : parts.numbers)
    if (lengths) hash.add(numbers.values.size());
  comm::agree(*context.group, context.rank, record, {.signature = hash.value(), .refusal = refusal, .describe = [&] {
                                                       return name_of(record, dim) + " of " + parts.describe();
                                                     }});
}

// Every rank's numbers, by rank.
std::vector<std::vector<Numbers>> exchange_numbers(RankContext& context, const ValueParts& parts, CallRecord record) {
  record.signature = typeid(Numbers).hash_code();
  std::string mine;
  for (const Numbers& numbers : parts.numbers) mine += comm::pack(numbers.row, numbers.integers, numbers.values);
  std::vector<std::vector<Numbers>> of_ranks;
  for (std::string_view bytes : context.group->gather_bytes(context.rank, record, mine)) {
    auto& of_rank = of_ranks.emplace_back(parts.numbers);  // of the same types
    for (Numbers& numbers : of_rank) comm::unpack_some(bytes, numbers.row, numbers.integers, numbers.values);
  }
  return of_ranks;
}

// A number counts as a tensor without dims.
std::vector<Number> joined(const std::vector<std::vector<Numbers>>& of_ranks, std::size_t place) {
  std::vector<Number> all;
  for (const auto& of_rank : of_ranks)
    all.insert(all.end(), of_rank[place].values.begin(), of_rank[place].values.end());
  return all;
}

void check_padding(const ValueParts& parts, double value) {
  check_defined(parts, "pad_across_ranks");
  const bool whole = value == std::trunc(value);
  for (const at::Tensor& tensor : parts.tensors) {
    if (tensor.layout() != at::kStrided)
      throw CollectiveError("pad_across_ranks needs dense tensors, got " + c10::str(tensor.layout()) +
                            "; call to_dense() first");
    if (!whole && at::isIntegralType(tensor.scalar_type(), true))
      throw CollectiveError("pad_across_ranks with " + c10::str(value) + " of a " +
                            c10::toString(tensor.scalar_type()) + " tensor; use a whole number");
  }
  for (const Numbers& numbers : parts.numbers)
    if (numbers.row && numbers.integers && !whole)
      throw CollectiveError("pad_across_ranks with " + c10::str(value) + " of " + numbers.type +
                            "; use a whole number");
}

at::Tensor padded(const at::Tensor& tensor, std::int64_t dim, std::int64_t longest, double value, bool first) {
  auto shape = tensor.sizes().vec();
  std::int64_t& size = shape[static_cast<std::size_t>(dim < 0 ? dim + tensor.dim() : dim)];
  if (size == longest) return tensor;
  size = longest - size;
  const at::Tensor padding = at::full(shape, value, tensor.options());
  return first ? at::cat({padding, tensor}, dim) : at::cat({tensor, padding}, dim);
}

}  // namespace

void Rank::gather_parts(ValueParts& parts, std::int64_t keep) {
  const trace::Range range(trace::Event::collective);
  const auto refusal = comm::refusal_of([&] {
    check_defined(parts, "all_gather");
    comm::check_dense(parts.tensors, device(), "all_gather");
  });
  const CallRecord record = refusal ? CallRecord{.operation = "all_gather"}
                                    : describe_call("all_gather", parts.tensors, SizeCheck::all_but_first_dim);
  agree_on(context_, parts, record, false, refusal);
  for (at::Tensor& tensor : parts.tensors) {
    const auto of_ranks = context_.communicator->all_gather(tensor);
    tensor = tensor.dim() == 0 ? at::stack(of_ranks) : at::cat(of_ranks);
    if (keep >= 0) tensor = tensor.slice(0, 0, keep);
  }
  if (parts.numbers.empty()) return;
  const auto of_ranks = exchange_numbers(context_, parts, {.operation = "all_gather"});
  for (std::size_t place = 0; place < parts.numbers.size(); ++place) {
    auto all = joined(of_ranks, place);
    if (keep >= 0) all.resize(std::min(all.size(), static_cast<std::size_t>(keep)));
    parts.numbers[place].values = std::move(all);
  }
}

void Rank::reduce_parts(ValueParts& parts, comm::ReduceOp op) {
  const auto refusal = comm::refusal_of([&] {
    check_defined(parts, "all_reduce");
    comm::check_dense(parts.tensors, device(), "all_reduce");
    comm::check_reduction(op, at::kFloat);
    for (const at::Tensor& tensor : parts.tensors) {
      comm::check_reduction(op, tensor.scalar_type());
      comm::element_type(tensor.scalar_type());
    }
    for (const Numbers& numbers : parts.numbers) tandem::check_reduction(op, numbers);
  });
  CallRecord record = refusal ? CallRecord{.operation = "all_reduce"} : describe_call("all_reduce", parts.tensors);
  record.reduce = op;
  agree_on(context_, parts, record, true, refusal);
  if (!parts.tensors.empty()) {
    for (at::Tensor& tensor : parts.tensors) tensor = tensor.detach().clone(at::MemoryFormat::Contiguous);
    context_.communicator->all_reduce(parts.tensors, op);
  }
  if (parts.numbers.empty()) return;
  const auto of_ranks = exchange_numbers(context_, parts, {.operation = "all_reduce", .reduce = op});
  std::vector<Number> of_one(of_ranks.size());
  for (std::size_t place = 0; place < parts.numbers.size(); ++place)
    for (std::size_t i = 0; i < parts.numbers[place].values.size(); ++i) {
      for (std::size_t peer = 0; peer < of_ranks.size(); ++peer) of_one[peer] = of_ranks[peer][place].values[i];
      parts.numbers[place].values[i] = reduce_numbers(of_one, op);
    }
}

void Rank::broadcast_parts(ValueParts& parts, int root) {
  const auto refusal = comm::refusal_of([&] {
    check_defined(parts, "broadcast");
    comm::check_dense(parts.tensors, device(), "broadcast");
    comm::check_root(root, world_size(), "broadcast");
    const bool overlaps = std::any_of(parts.tensors.begin(), parts.tensors.end(), [](const at::Tensor& tensor) {
      return at::has_internal_overlap(tensor) == at::MemOverlap::Yes;
    });
    if (overlaps && rank() != root)
      throw CollectiveError(
          "broadcast overwrites its tensors, and one of them is expanded, with several elements in "
          "one place; give it a clone()");
  });
  CallRecord record = refusal ? CallRecord{.operation = "broadcast"} : describe_call("broadcast", parts.tensors);
  record.root = root;
  agree_on(context_, parts, record, true, refusal);
  if (!parts.tensors.empty()) context_.communicator->broadcast(parts.tensors, root);
  if (parts.numbers.empty()) return;
  parts.numbers =
      exchange_numbers(context_, parts, {.operation = "broadcast", .root = root})[static_cast<std::size_t>(root)];
}

void Rank::pad_parts(ValueParts& parts, std::int64_t dim, double value, bool pad_first) {
  const trace::Range range(trace::Event::collective);
  CallRecord record{.operation = "pad_across_ranks"};
  const auto refusal = comm::refusal_of([&] { check_padding(parts, value); });
  if (!refusal) record = describe_call("pad_across_ranks", parts.tensors, SizeCheck::none);
  agree_on(context_, parts, record, false, refusal, dim);
  const auto has_dim = [&](const at::Tensor& tensor) { return dim < tensor.dim() && dim >= -tensor.dim(); };
  std::vector<std::int64_t> longest;
  for (const at::Tensor& tensor : parts.tensors) longest.push_back(has_dim(tensor) ? tensor.size(dim) : 0);
  for (const Numbers& numbers : parts.numbers) longest.push_back(static_cast<std::int64_t>(numbers.values.size()));
  for (const auto& of_rank : gather_objects(longest))
    for (std::size_t i = 0; i < longest.size(); ++i) longest[i] = std::max(longest[i], of_rank[i]);
  auto length = longest.begin();
  for (at::Tensor& tensor : parts.tensors) {
    if (has_dim(tensor)) tensor = padded(tensor, dim, *length, value, pad_first);
    ++length;
  }
  for (Numbers& numbers : parts.numbers) {
    const auto missing = static_cast<std::size_t>(*length++) - numbers.values.size();
    if (!numbers.row || (dim != 0 && dim != -1)) continue;
    const auto at = pad_first ? numbers.values.begin() : numbers.values.end();
    numbers.values.insert(at, missing, value);
  }
}

}  // namespace tandem
