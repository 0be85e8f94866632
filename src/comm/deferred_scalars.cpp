#include "tandem/comm/deferred_scalars.h"

#include <algorithm>
#include <optional>
#include <utility>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "tandem/comm/communicator.h"

namespace tandem::comm {
namespace {

const at::Tensor* tensor_of(const DeferredScalars::Scalar& scalar) { return std::get_if<at::Tensor>(&scalar); }

// Nothing where all numbers are on the host.
std::optional<c10::Device> device_of(const std::vector<DeferredScalars::Scalar>& scalars) {
  for (const auto& scalar : scalars)
    if (const at::Tensor* const tensor = tensor_of(scalar); tensor && !tensor->is_cpu()) return tensor->device();
  return std::nullopt;
}

// Of a number that is on the host.
double value_of(const DeferredScalars::Scalar& scalar) {
  const at::Tensor* const tensor = tensor_of(scalar);
  return tensor ? tensor->item<double>() : std::get<double>(scalar);
}

bool is_on_host(const DeferredScalars::Scalar& scalar) {
  const at::Tensor* const tensor = tensor_of(scalar);
  return !tensor || tensor->is_cpu();
}

}  // namespace

double DeferredScalars::Arrived::sum(std::size_t i) const {
  double sum = of(0, i);
  for (std::size_t rank = 1; rank < ranks_; ++rank) sum += of(rank, i);
  return sum;
}

// Numbers on their way: of this rank from the host to its device, and of all ranks back.
struct DeferredScalars::Pending {
  Pending(std::size_t numbers, std::size_t of_ranks, c10::Device on)
      : count(numbers), ranks(of_ranks), device(on), end(on.type()) {
    const auto size = static_cast<std::int64_t>(count * ranks);
    const auto pinned = at::dtype(at::kDouble).pinned_memory(true);
    from_host = at::zeros({size}, pinned);
    to_host = at::empty({size}, pinned);
  }

  bool fits(std::size_t numbers, std::size_t of_ranks, c10::Device on) const {
    return count == numbers && ranks == of_ranks && device == on;
  }

  // A row a rank. The others' are zeros here, so that a sum over the ranks has each rank's numbers as they are, in
  // whatever order the transport adds up.
  void fill(const std::vector<Scalar>& scalars, std::size_t rank) {
    const std::size_t first = rank * count;
    double* const numbers = from_host.mutable_data_ptr<double>();
    rows = at::empty(from_host.sizes(), at::dtype(at::kDouble).device(device));
    on_host.clear();
    for (std::size_t i = 0; i < count; ++i) {
      numbers[first + i] = is_on_host(scalars[i]) ? value_of(scalars[i]) : 0;
      if (is_on_host(scalars[i])) on_host.push_back(first + i);
    }
    if (ranks > 1) rows.copy_(from_host, /*non_blocking=*/true);
    for (std::size_t i = 0; i < count; ++i)
      if (!is_on_host(scalars[i]))
        rows.select(0, static_cast<std::int64_t>(first + i)).copy_(tensor_of(scalars[i])->detach().reshape({}));
  }

  // Once the copy is there. What the host had has not travelled where nobody else wanted it.
  const double* numbers() {
    double* const arrived = to_host.mutable_data_ptr<double>();
    if (ranks == 1)
      for (const std::size_t i : on_host) arrived[i] = from_host.const_data_ptr<double>()[i];
    return arrived;
  }

  void begin_copy() {
    to_host.copy_(rows, /*non_blocking=*/true);
    end.record(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
    rows.reset();
  }

  std::size_t count, ranks;
  c10::Device device;
  at::Tensor from_host, rows, to_host;
  std::vector<std::size_t> on_host;  // which numbers the host had
  std::uint64_t reduction = 0;       // that was started; 0: none
  c10::Event end;                    // of the copy to the host
  Deliver deliver;
};

DeferredScalars::DeferredScalars() = default;
DeferredScalars::DeferredScalars(Communicator& communicator, c10::Device device)
    : communicator_(&communicator), device_(device) {}
DeferredScalars::~DeferredScalars() = default;

void DeferredScalars::add(const std::vector<Scalar>& scalars, Deliver deliver) {
  const auto device = device_of(scalars);
  if (!device && pending_.empty()) return deliver_now(scalars, 1, deliver);
  start(scalars, 1, device ? *device : pending_.back()->device, std::move(deliver));
}

void DeferredScalars::add_of_all(const std::vector<Scalar>& scalars, Deliver deliver) {
  const auto ranks = static_cast<std::size_t>(communicator_->world_size());
  if (device_.is_cpu()) return deliver_now(scalars, ranks, deliver);
  start(scalars, ranks, device_, std::move(deliver));
}

// Ranks on the CPU have nothing to gain by going on: the others come here when they have the same.
void DeferredScalars::deliver_now(const std::vector<Scalar>& scalars, std::size_t ranks, const Deliver& deliver) {
  std::vector<double> numbers(ranks * scalars.size());
  const std::size_t first = ranks > 1 ? static_cast<std::size_t>(communicator_->rank()) * scalars.size() : 0;
  for (std::size_t i = 0; i < scalars.size(); ++i) numbers[first + i] = value_of(scalars[i]);
  if (ranks > 1) {
    const at::Tensor rows =
        at::from_blob(numbers.data(), {static_cast<std::int64_t>(numbers.size())}, at::dtype(at::kDouble));
    communicator_->all_reduce(rows, ReduceOp::sum);
  }
  deliver(Arrived(numbers.data(), ranks, scalars.size()));
}

void DeferredScalars::start(const std::vector<Scalar>& scalars, std::size_t ranks, c10::Device device,
                            Deliver deliver) {
  const at::NoGradGuard no_grad;
  std::unique_ptr<Pending> next = take_spare(scalars.size(), ranks, device);
  next->fill(scalars, ranks > 1 ? static_cast<std::size_t>(communicator_->rank()) : 0);
  next->deliver = std::move(deliver);
  next->reduction = ranks > 1 ? communicator_->start_all_reduce(next->rows, next->rows, ReduceOp::sum) : 0;
  pending_.push_back(std::move(next));
  begin_copies(Wait::no);
}

// Pinned memory and events are made once: making them may wait for the device.
std::unique_ptr<DeferredScalars::Pending> DeferredScalars::take_spare(std::size_t count, std::size_t ranks,
                                                                      c10::Device device) {
  const auto found =
      std::find_if(spare_.begin(), spare_.end(), [&](const auto& one) { return one->fits(count, ranks, device); });
  if (found == spare_.end()) return std::make_unique<Pending>(count, ranks, device);
  auto spare = std::move(*found);
  spare_.erase(found);
  return spare;
}

// Of what is reduced, all that is pending: a copy that began only when its turn has come would be behind all that the
// device has got meanwhile.
void DeferredScalars::begin_copies(Wait wait) {
  const at::NoGradGuard no_grad;
  for (; copied_ < pending_.size(); ++copied_) {
    Pending& next = *pending_[copied_];
    if (next.reduction != 0 && wait == Wait::ranks) communicator_->wait(next.reduction);
    if (next.reduction != 0 && wait != Wait::ranks && !communicator_->try_wait(next.reduction)) return;
    next.begin_copy();
  }
}

void DeferredScalars::deliver_as(Wait wait) {
  begin_copies(wait);
  while (copied_ > 0) {
    Pending& oldest = *pending_.front();
    if (wait == Wait::no && !oldest.end.query()) return;
    if (wait != Wait::no) oldest.end.synchronize();
    std::unique_ptr<Pending> one = std::move(pending_.front());
    pending_.pop_front();
    copied_ -= 1;
    const Deliver deliver = std::exchange(one->deliver, {});
    deliver(Arrived(one->numbers(), one->ranks, one->count));
    spare_.push_back(std::move(one));
  }
}

void DeferredScalars::deliver() { deliver_as(Wait::no); }
void DeferredScalars::deliver_all() { deliver_as(Wait::ranks); }
void DeferredScalars::deliver_given() { deliver_as(Wait::device); }

}  // namespace tandem::comm
