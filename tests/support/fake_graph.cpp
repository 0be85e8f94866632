#include "support/fake_graph.h"

#include <atomic>
#include <thread>

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/from_blob.h>

#include "support/fake_device.h"

namespace tandem::test::fake {
namespace {

thread_local Tape* current_tape = nullptr;
std::atomic<std::chrono::milliseconds> replay_delay{std::chrono::milliseconds(0)};

}  // namespace

Tape* tape() { return current_tape; }

void must_not_be_recorded() { TORCH_CHECK(!current_tape, "operation not permitted when stream is capturing"); }

void Tape::begin(const at::Generator& own) {
  generator_ = own;
  state_ = own.get_state().clone();
  current_tape = this;
}

void Tape::end() {
  abandon();
  operators_.shrink_to_fit();
}

void Tape::abandon() noexcept {
  if (std::exchange(current_tape, nullptr) != this) return;
  for (auto& [memory, before] : before_) memory->copy_(before);
  before_.clear();
  generator_.set_state(state_);
}

void set_replay_delay(std::chrono::milliseconds delay) { replay_delay = delay; }

void Tape::replay() {
  std::this_thread::sleep_for(replay_delay.load());
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  for (const auto& redo : operators_) redo();
}

void Tape::keep(const at::Tensor& tensor) {
  if (!tensor.is_cuda() || !tensor.has_storage() || tensor.storage().nbytes() == 0) return;
  const auto bytes = static_cast<std::int64_t>(tensor.storage().nbytes());
  if (!known_.insert(tensor.storage().unsafeGetStorageImpl()).second) return;
  storages_.push_back(tensor.storage());
  auto memory = std::make_unique<at::Tensor>(at::from_blob(tensor.storage().mutable_data(), {bytes}, at::kByte));
  const at::Tensor before = memory->clone();
  before_.emplace_back(std::move(memory), before);
}

NotRecorded::NotRecorded() : tape_(std::exchange(current_tape, nullptr)) {}
NotRecorded::~NotRecorded() { current_tape = tape_; }

std::unique_ptr<Graph> make_graph() { return std::make_unique<Tape>(); }

}  // namespace tandem::test::fake
