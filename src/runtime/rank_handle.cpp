#include "tandem/runtime/rank_handle.h"

#include <algorithm>
#include <cstdio>

#include <ATen/Functions.h>

#include "comm/agree.h"
#include "comm/check_tensors.h"
#include "tandem/core/error.h"
#include "tandem/trace/range.h"

namespace tandem {

bool RankHandle::check_trigger() {
  const trace::Range range(trace::Event::collective);
  const comm::CallRecord record{.operation = "check_trigger"};
  const auto triggers = context_.group->meet(rank(), record, std::exchange(trigger_, false) ? 1 : 0);
  return std::any_of(triggers.begin(), triggers.end(), [](std::uint64_t set) { return set != 0; });
}

RankHandle::Share RankHandle::share_of(std::size_t size, bool padding) const {
  const auto ranks = static_cast<std::size_t>(world_size());
  const auto index = static_cast<std::size_t>(rank());
  const std::size_t longer = size % ranks;  // ranks that get one more
  const std::size_t begin = index * (size / ranks) + std::min(index, longer);
  const std::size_t end = begin + size / ranks + (index < longer ? 1 : 0);
  const std::size_t longest = size / ranks + (longer > 0 ? 1 : 0);
  return {begin, end, padding && size > 0 ? longest - (end - begin) : 0};
}

at::Tensor RankHandle::split_between_ranks(const at::Tensor& rows, bool padding) const {
  if (!rows.defined()) throw DataError("split_between_ranks needs a tensor with rows (dim 0), got an undefined tensor");
  if (rows.dim() == 0) throw DataError("split_between_ranks needs a tensor with rows (dim 0), got a 0-dim tensor");
  const auto [begin, end, repeat] = share_of(static_cast<std::size_t>(rows.size(0)), padding);
  const at::Tensor share = rows.slice(0, static_cast<std::int64_t>(begin), static_cast<std::int64_t>(end));
  if (repeat == 0) return share;
  return at::cat({share, rows.slice(0, -1).repeat_interleave(static_cast<std::int64_t>(repeat), 0)});
}

// Before the ranks exchange anything: all find out when the root of one is none.
void RankHandle::check_root(const comm::CallRecord& record) const {
  comm::agree(*context_.group, rank(), record,
              {.signature = static_cast<std::uint64_t>(record.root) + 1,
               .refusal = comm::refusal_of([&] { comm::check_root(record.root, world_size(), record.operation); }),
               .describe = [&] { return to_string(record); }});
}

void RankHandle::write_out(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

}  // namespace tandem
