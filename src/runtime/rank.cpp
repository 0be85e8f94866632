#include "tandem/runtime/rank.h"

#include <algorithm>
#include <cstdio>

#include <ATen/Functions.h>

#include "runtime/rank_context.h"
#include "tandem/core/error.h"
#include "tandem/data/detail/step_info.h"
#include "tandem/trace/range.h"

namespace tandem {

Rank::Rank(RankContext& context)
    : context_(context),
      rank_(context.rank),
      world_size_(context.world_size()),
      device_(context.device()),
      state_(context.state) {}

bool Rank::cancelled() const { return context_.group->token().cancelled(); }

comm::Communicator& Rank::communicator() const { return *context_.communicator; }

int Rank::logical_ranks() const { return context_.logical_ranks(); }

std::int64_t Rank::samples_to_keep() const {
  const data::StepInfo* loader = context_.window.loaders().current();
  return loader ? loader->samples_to_keep : -1;
}

comm::RankGroup& Rank::group() const { return *context_.group; }

void Rank::wait_for_everyone() { context_.communicator->barrier(); }

void Rank::set_trigger() { context_.trigger = true; }

// Runs `function` on the first one, and then on those that meet it. The others wait for it to end well.
static void run_first(comm::RankGroup& group, int rank, bool is_first, const std::function<void()>& meet,
                      const std::function<void()>& function) {
  if (!is_first) {
    meet();
    return function();
  }
  try {
    function();
  } catch (...) {
    group.token().cancel(std::current_exception(), rank);
    throw;
  }
  meet();
}

void Rank::run_main_first(const std::function<void()>& function) {
  const auto meet = [this] { group().meet(rank(), {.operation = "main_first"}); };
  run_first(group(), rank(), is_main(), meet, function);
}

void Rank::run_local_main_first(const std::function<void()>& function) {
  const auto meet = [this] {
    const comm::RankGroup::Call call(group(), rank(), {.operation = "local_main_first"}, nullptr);
  };
  run_first(group(), rank(), is_local_main(), meet, function);
}

int Rank::local_rank() const { return context_.local_rank(); }

bool Rank::check_trigger() {
  const trace::Range range(trace::Event::collective);
  const comm::CallRecord record{.operation = "check_trigger"};
  const auto triggers = context_.group->meet(rank(), record, std::exchange(context_.trigger, false) ? 1 : 0);
  return std::any_of(triggers.begin(), triggers.end(), [](std::uint64_t set) { return set != 0; });
}

Rank::Share Rank::share_of(std::size_t size, bool padding) const {
  const auto ranks = static_cast<std::size_t>(world_size());
  const auto index = static_cast<std::size_t>(rank());
  const std::size_t longer = size % ranks;  // ranks that get one more
  const std::size_t begin = index * (size / ranks) + std::min(index, longer);
  const std::size_t end = begin + size / ranks + (index < longer ? 1 : 0);
  const std::size_t longest = size / ranks + (longer > 0 ? 1 : 0);
  return {begin, end, padding && size > 0 ? longest - (end - begin) : 0};
}

at::Tensor Rank::split_between_ranks(const at::Tensor& rows, bool padding) const {
  if (!rows.defined()) throw DataError("split_between_ranks needs a tensor with rows (dim 0), got an undefined tensor");
  if (rows.dim() == 0) throw DataError("split_between_ranks needs a tensor with rows (dim 0), got a 0-dim tensor");
  const auto [begin, end, repeat] = share_of(static_cast<std::size_t>(rows.size(0)), padding);
  const at::Tensor share = rows.slice(0, static_cast<std::int64_t>(begin), static_cast<std::int64_t>(end));
  if (repeat == 0) return share;
  return at::cat({share, rows.slice(0, -1).repeat_interleave(static_cast<std::int64_t>(repeat), 0)});
}

void Rank::write_out(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

}  // namespace tandem
