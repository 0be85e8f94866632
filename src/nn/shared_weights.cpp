#include "nn/shared_weights.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "comm/describe_call.h"
#include "comm/rank_group.h"
#include "nn/lent_storage.h"
#include "nn/tensor_layout.h"
#include "tandem/comm/detail/objects.h"

namespace tandem::nn {
namespace {

comm::CallRecord record() { return comm::describe_object_call("share_weights", typeid(SharedWeights)); }

bool same_bytes(const at::Storage& a, const at::Storage& b) {
  return a.nbytes() == b.nbytes() && (a.data() == b.data() || std::memcmp(a.data(), b.data(), a.nbytes()) == 0);
}

// The elements' bytes, as numbers: NaN is equal to itself then.
at::Tensor bytes_of_elements(const at::Tensor& tensor) {
  return tensor.detach().contiguous().view({-1}).view(at::kByte);
}

}  // namespace

// Where the parameters lie, for the ranks to compare.
struct SharedWeights::Candidates {
  struct Place {
    std::ptrdiff_t storage = -1;  // in storages; -1: the parameter has none that is its memory
    std::int64_t offset = 0;
    std::vector<std::int64_t> strides;
    bool operator==(const Place&) const = default;
  };
  std::vector<Place> places;  // of the parameters
  std::vector<at::Storage> storages;
  std::vector<std::uint8_t> possible;  // whether they can be lent
};

SharedWeights::SharedWeights(const NamedTensors& parameters, comm::Communicator& communicator, comm::RankGroup& group)
    : parameters_(parameters), communicator_(communicator), group_(group) {}

SharedWeights::~SharedWeights() = default;

SharedWeights::Candidates SharedWeights::candidates() const {
  Candidates found;
  std::unordered_map<const void*, std::ptrdiff_t> known;
  for (const auto& [name, parameter] : parameters_) {
    auto& place = found.places.emplace_back();
    if (!parameter.is_cpu() || parameter.layout() != at::kStrided || !parameter.has_storage()) continue;
    const at::Storage& storage = parameter.storage();
    const auto [entry, is_new] =
        known.try_emplace(storage.unsafeGetStorageImpl(), static_cast<std::ptrdiff_t>(found.storages.size()));
    place = {entry->second, parameter.storage_offset(), parameter.strides().vec()};
    if (!is_new) continue;
    found.storages.push_back(storage);
    const bool taken = std::any_of(touched_.begin(), touched_.end(), [&](const auto& weak) {
      return weak.lock().get() == storage.unsafeGetStorageImpl();
    });
    found.possible.push_back(LentStorage::possible(storage) && !taken ? 1 : 0);
  }
  return found;
}

// Of flags in the same order on all ranks, whether any rank's is set, or all are.
std::vector<std::uint8_t> SharedWeights::agreed(const std::vector<std::uint8_t>& mine, bool any) const {
  std::vector<std::uint8_t> all(mine);
  const comm::detail::ObjectExchange exchange(
      group_, communicator_.rank(), comm::detail::object_call<std::vector<std::uint8_t>>("share_weights", false),
      &mine);
  for (int peer = 0; peer < group_.world_size(); ++peer) {
    const auto& theirs = exchange.of<std::vector<std::uint8_t>>(peer);
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = any ? all[i] | theirs[i] : all[i] & theirs[i];
  }
  return all;
}

void SharedWeights::lend(Lending lending) {
  end();
  lending_ = lending;
  separated_ = false;
  if (lending == Lending::none || !communicator_.shares_memory() || !group_.place().some_share_memory()) return;
  const Candidates mine = candidates();
  std::vector<std::uint8_t> fits(parameters_.size(), 0);
  {
    const comm::RankGroup::Call call(group_, communicator_.rank(), record(), &mine);
    const auto& main = call.payload<Candidates>(first_rank());
    std::vector<std::uint8_t> storage_fits(mine.possible);
    const bool alike = mine.places == main.places;
    for (std::size_t s = 0; s < storage_fits.size(); ++s)
      storage_fits[s] = alike && storage_fits[s] && same_bytes(mine.storages[s], main.storages[s]) ? 1 : 0;
    for (std::size_t i = 0; i < fits.size(); ++i)
      if (mine.places[i].storage >= 0) fits[i] = storage_fits[static_cast<std::size_t>(mine.places[i].storage)];
  }
  fits = agreed(fits, /*any=*/false);
  std::unordered_map<std::ptrdiff_t, std::size_t> places;
  for (std::size_t i = 0; i < fits.size(); ++i) {
    if (!fits[i]) continue;
    const std::ptrdiff_t storage = mine.places[i].storage;
    const auto [entry, is_new] = places.try_emplace(storage, lent_.size());
    if (is_new) lent_.push_back(std::make_unique<LentStorage>(mine.storages[static_cast<std::size_t>(storage)]));
    place_of_[parameters_[i].second.unsafeGetTensorImpl()] = entry->second;
  }
  separated_ = lending == Lending::shared;
  share();
}

void SharedWeights::end() {
  std::vector<std::size_t> all;
  for (std::size_t k = 0; k < lent_.size(); ++k)
    if (lent_[k] && !lent_[k]->untouched()) all.push_back(k);
  give_up(all);
  lent_.clear();
  place_of_.clear();
}

std::optional<std::size_t> SharedWeights::lent_storage(const at::Tensor& parameter) const {
  const auto found = place_of_.find(parameter.unsafeGetTensorImpl());
  if (found == place_of_.end() || !lent_[found->second]) return std::nullopt;
  return found->second;
}

bool SharedWeights::shares(const at::Tensor& parameter) const {
  return lending_ == Lending::shared && !separated_ && lent_storage(parameter).has_value();
}

bool SharedWeights::touched(const at::Tensor& parameter) const {
  const LentStorage* const storage = storage_of(parameter);
  return storage && !(storage->untouched() && storage->holds(parameter));
}

void SharedWeights::notice() {
  if (lent_.empty()) return;
  std::vector<std::uint8_t> mine(lent_.size(), 0);
  for (const auto& [name, parameter] : parameters_)
    if (touched(parameter)) mine[place_of_.at(parameter.unsafeGetTensorImpl())] = 1;
  const auto any = agreed(mine, /*any=*/true);
  std::vector<std::size_t> storages;
  for (std::size_t k = 0; k < any.size(); ++k)
    if (any[k]) storages.push_back(k);
  give_up(storages);
}

void SharedWeights::give_up(const std::vector<std::size_t>& storages) {
  for (const std::size_t k : storages) {
    if (!lent_[k]) continue;
    touched_.push_back(lent_[k]->storage().getWeakStorageImpl());
    lent_[k].reset();
  }
}

void SharedWeights::separate() {
  if (lending_ != Lending::shared || separated_) return;
  const comm::RankGroup::Call call(group_, communicator_.rank(), record(), this);  // all copy before anybody writes
  separated_ = true;
  if (communicator_.rank() == first_rank()) return;
  for (const auto& lent : lent_)
    if (lent) lent->separate();
}

void SharedWeights::share() {
  if (!std::exchange(separated_, false)) return;
  std::vector<std::uint8_t> fits(lent_.size(), 0);
  for (const auto& [name, parameter] : parameters_)
    if (const auto place = lent_storage(parameter)) fits[*place] = 1;
  for (const auto& [name, parameter] : parameters_)
    if (const auto place = lent_storage(parameter); place && touched(parameter)) fits[*place] = 0;
  {
    const comm::RankGroup::Call call(group_, communicator_.rank(), record(), this);
    const auto& main = call.payload<SharedWeights>(first_rank());
    for (std::size_t k = 0; k < lent_.size(); ++k)
      if (fits[k] && communicator_.rank() != first_rank())
        fits[k] = main.lent_[k]->untouched() && same_bytes(lent_[k]->storage(), main.lent_[k]->storage()) ? 1 : 0;
  }
  fits = agreed(fits, /*any=*/false);
  std::vector<std::size_t> others;
  for (std::size_t k = 0; k < fits.size(); ++k)
    if (!fits[k]) others.push_back(k);
  give_up(others);
  const comm::RankGroup::Call call(group_, communicator_.rank(), record(), this);
  if (communicator_.rank() == first_rank()) return;
  const auto& main = call.payload<SharedWeights>(first_rank());
  for (std::size_t k = 0; k < lent_.size(); ++k)
    if (lent_[k]) lent_[k]->refer_to(main.lent_[k]->memory());
}

void SharedWeights::write(const std::function<void()>& write) {
  std::vector<LentStorage*> all;
  for (const auto& lent : lent_)
    if (lent) all.push_back(lent.get());
  const LentStorage::Writing writing(std::move(all));
  write();
}

int SharedWeights::first_rank() const { return group_.place().first_rank; }

LentStorage* SharedWeights::storage_of(const at::Tensor& parameter) const {
  const auto place = lent_storage(parameter);
  return place ? lent_[*place].get() : nullptr;
}

void SharedWeights::accept() {
  seen_.clear();
  for (const auto& [name, parameter] : parameters_)
    seen_.push_back({parameter.const_data_ptr(), static_cast<std::uint32_t>(parameter._version())});
}

bool SharedWeights::written() const {
  for (std::size_t i = 0; i < seen_.size(); ++i) {
    const at::Tensor& parameter = parameters_[i].second;
    if (lent_storage(parameter)) continue;
    if (parameter.const_data_ptr() != seen_[i].data ||
        static_cast<std::uint32_t>(parameter._version()) != seen_[i].version)
      return true;
  }
  return false;
}

std::optional<SharedWeights::Difference> SharedWeights::difference() const {
  const at::NoGradGuard no_grad;
  std::size_t first = parameters_.size();
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    if (parameters_[i].second.layout() != at::kStrided) continue;
    const at::Tensor mine = bytes_of_elements(parameters_[i].second);
    at::Tensor main = mine.clone();
    communicator_.broadcast(main, 0);
    if (first == parameters_.size() && !at::equal(mine, main)) first = i;
  }
  const auto all = group_.meet(communicator_.rank(), record(), first);
  for (std::size_t rank = 0; rank < all.size(); ++rank)
    if (all[rank] < parameters_.size()) return Difference{static_cast<int>(rank), parameters_[all[rank]].second};
  return std::nullopt;
}

}  // namespace tandem::nn
