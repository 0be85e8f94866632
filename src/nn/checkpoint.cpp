#include "tandem/nn/checkpoint.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include <ATen/Context.h>
#include <ATen/Functions.h>
#include <ATen/SequenceNumber.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/graph_task.h>

#include "nn/saved_tensor_hooks.h"
#include "nn/written_tensors.h"
#include "tandem/core/error.h"
#include "tandem/rng/generators.h"

namespace tandem::nn::detail {
namespace {

namespace autograd = torch::autograd;

// ---- what is kept as it is

// A tensor that stays, and its version.
struct KeptTensor {
  at::Tensor tensor;
  std::uint32_t version = 0;

  explicit KeptTensor(const at::Tensor& of) : tensor(of.detach()), version(version_of(of)) {}

  static std::uint32_t version_of(const at::Tensor& of) {
    return of.is_inference() ? 0 : static_cast<std::uint32_t>(of._version());
  }

  void take_version() { version = version_of(tensor); }

  const at::Tensor& as_it_was() const {
    TORCH_CHECK(version_of(tensor) == version,
                "one of the variables needed for gradient computation has been modified by an inplace operation: [",
                tensor.toString(), " ", tensor.sizes(), "] of what nn::checkpoint computes again is at version ",
                version_of(tensor), "; expected version ", version, " instead");
    return tensor;
  }
};

// An input of a region, or, within another one, what that one computes again.
class RegionInput {
 public:
  explicit RegionInput(const at::Tensor& tensor)
      : requires_grad_(tensor.requires_grad()), hooks_(saved_tensor_hooks()) {
    const at::NoGradGuard no_grad;
    if (hooks_)
      hooks_->call_pack_hook(tensor);
    else
      kept_.emplace(tensor);
  }

  // To be called when the region has been computed: that may write to its inputs.
  void take_version();

  at::Tensor get() const {
    const at::NoGradGuard no_grad;
    return (kept_ ? kept_->as_it_was() : hooks_->call_unpack_hook()).detach().requires_grad_(requires_grad_);
  }

 private:
  bool requires_grad_;
  std::unique_ptr<autograd::SavedVariableHooks> hooks_;
  std::optional<KeptTensor> kept_;
};

// ---- what a thread computes with

class Autocasts {
 public:
  Autocasts() {
    for (const auto device : kDevices)
      states_.push_back({device, at::autocast::is_autocast_enabled(device), at::autocast::get_autocast_dtype(device)});
  }

  void put_in_place() const {
    for (const State& state : states_) {
      at::autocast::set_autocast_dtype(state.device, state.type);
      at::autocast::set_autocast_enabled(state.device, state.enabled);
    }
  }

 private:
  static constexpr at::DeviceType kDevices[] = {at::kCPU, at::kCUDA};
  struct State {
    at::DeviceType device;
    bool enabled;
    at::ScalarType type;
  };
  std::vector<State> states_;
};

class AutocastsScope {
 public:
  explicit AutocastsScope(const Autocasts& wanted) {
    wanted.put_in_place();
    at::autocast::set_autocast_cache_enabled(false);  // it would keep what is made for now
  }
  ~AutocastsScope() {
    before_.put_in_place();
    at::autocast::set_autocast_cache_enabled(cache_before_);
  }
  AutocastsScope(const AutocastsScope&) = delete;
  AutocastsScope& operator=(const AutocastsScope&) = delete;

 private:
  const Autocasts before_;
  const bool cache_before_ = at::autocast::is_autocast_cache_enabled();
};

// Throws ConfigError while a graph is recorded, whose replays draw other numbers each time.
at::Tensor state_of(const at::Generator& generator) {
  try {
    return generator.get_state();
  } catch (const c10::Error& error) {
    const std::string why = error.what_without_backtrace();
    throw ConfigError("nn::checkpoint has to know where the random numbers of " + generator.device().str() +
                      " stand, which it cannot in a step that is recorded: " + why.substr(0, why.find('\n')));
  }
}

at::Generator copy_of(at::Generator generator) {
  if (!generator.defined()) return {};
  const std::lock_guard lock(generator.mutex());
  if (generator.device().is_cpu()) return generator.clone();
  const c10::Device device = generator.device();
  at::Generator copy = at::globalContext().getAcceleratorHooksInterface(device.type()).getNewGenerator(device.index());
  copy.set_state(state_of(generator));
  return copy;
}

rng::RankGenerators copy_of(const rng::RankGenerators& generators) {
  rng::RankGenerators copy{.cpu = copy_of(generators.cpu), .cuda = {}, .cuda_seed = generators.cuda_seed};
  for (const at::Generator& one : generators.cuda) copy.cuda.push_back(copy_of(one));
  return copy;
}

// Those that operators of this thread draw from.
rng::RankGenerators copy_of_current_generators(const std::vector<at::Tensor>& inputs) {
  if (const rng::RankGenerators* own = rng::current_generators()) return copy_of(*own);
  rng::RankGenerators process{.cpu = at::globalContext().defaultGenerator(at::kCPU)};
  for (const at::Tensor& input : inputs) {
    if (!input.is_cuda()) continue;
    const auto index = static_cast<std::size_t>(input.device().index());
    if (index >= process.cuda.size()) process.cuda.resize(index + 1);
    process.cuda[index] = at::globalContext().defaultGenerator(input.device());
  }
  return copy_of(process);
}

// ---- the graph

// Parameters that the graph of `outputs` ends in, without what is older than `began`.
std::vector<at::Tensor> leaves_of(const std::vector<at::Tensor>& outputs, std::uint64_t began) {
  std::vector<at::Tensor> leaves;
  std::vector<autograd::Node*> next;
  std::unordered_set<autograd::Node*> seen;
  const auto visit = [&](autograd::Node* node) {
    if (node && node->sequence_nr() >= began && seen.insert(node).second) next.push_back(node);
  };
  for (const at::Tensor& output : outputs) visit(output.grad_fn().get());
  while (!next.empty()) {
    autograd::Node* const node = next.back();
    next.pop_back();
    if (const auto* leaf = dynamic_cast<const autograd::AccumulateGrad*>(node)) leaves.push_back(leaf->variable);
    for (const autograd::Edge& edge : node->next_edges()) visit(edge.function.get());
  }
  return leaves;
}

// Ends a computation that has given all that is wanted of it.
struct AllIsThere {};

thread_local RecomputedRegion* innermost_region = nullptr;  // that is computed for the first time

}  // namespace

// ---- a region

// What a part of a forward pass needs to be computed again. The tensors that its graph saves are numbered as they come,
// and each graph's node has the number in place of the tensor: a SavedNumber, which owns the region.
class RecomputedRegion : public std::enable_shared_from_this<RecomputedRegion> {
 public:
  RecomputedRegion(const std::vector<at::Tensor>& inputs, std::function<void(const std::vector<at::Tensor>&)> again)
      : again_(std::move(again)),
        generators_(copy_of_current_generators(inputs)),
        around_(innermost_region),
        began_(at::sequence_number::peek()),
        outermost_began_(around_ ? around_->outermost_began_ : began_) {
    inputs_.reserve(inputs.size());
    for (const at::Tensor& input : inputs) inputs_.emplace_back(input);
    innermost_region = this;
  }

  // The thread computes something else from here on.
  void leave() { innermost_region = std::exchange(around_, nullptr); }

  void end(const std::vector<at::Tensor>& outputs) {
    RecomputedRegion* const around = around_;
    leave();
    for (RegionInput& input : inputs_) input.take_version();
    for (const at::Tensor& leaf : leaves_of(outputs, began_))
      if (!written_.has(leaf)) leaves_.emplace_back(leaf);
    give_up_unused(around);
  }

  WrittenTensors& written() { return written_; }

  // The graph saves a tensor: returns its number.
  std::size_t save(const at::Tensor& tensor) {
    const std::lock_guard lock(mutex_);
    Slot& slot = slots_.emplace_back();
    slot.describe(tensor);
    const auto& node = tensor.grad_fn();
    // What was there before stays there, so it costs nothing.
    if (node ? node->sequence_nr() < outermost_began_ : tensor.requires_grad()) slot.kept.emplace(tensor);
    // Of others without a graph that is seen in the end.
    if (!node && !tensor.requires_grad()) {
      slot.kept.emplace(tensor);
      undecided_.push_back({weak_from_this(), slots_.size() - 1});
    }
    return slots_.size() - 1;
  }

  at::Tensor load(std::size_t number) {
    const std::lock_guard lock(mutex_);
    Slot& slot = slots_[number];
    if (slot.kept) return slot.kept->as_it_was();
    const int pass = autograd::get_current_graph_task_id();
    const bool new_pass = pass == kNoPass || pass != pass_;
    if (new_pass) begin_pass(pass);
    if (!slot.again) compute_again(new_pass && pass != kNoPass ? std::nullopt : std::optional(number));
    return std::exchange(slot.again, std::nullopt)->as_it_was();
  }

  // What is kept under the number is as it should be now.
  void take_version(std::size_t number) {
    const std::lock_guard lock(mutex_);
    if (slots_[number].kept) slots_[number].kept->take_version();
  }

  void forget(std::size_t number) {
    const std::lock_guard lock(mutex_);
    slots_[number] = {};
    slots_[number].wanted = false;
  }

 private:
  class SavedAgain;
  static constexpr int kNoPass = -1;

  struct Slot {
    bool wanted = true;               // by a node that is still there
    std::optional<KeptTensor> kept;   // not to be computed
    std::optional<KeptTensor> again;  // computed in this pass, and not fetched yet
    std::vector<std::int64_t> sizes;  // what has to come out
    at::ScalarType type{};
    c10::Device device{at::kCPU};

    void describe(const at::Tensor& tensor) {
      if (tensor.layout() == at::kStrided) sizes = tensor.sizes().vec();
      type = tensor.scalar_type();
      device = tensor.device();
    }
  };

  struct Undecided {
    std::weak_ptr<RecomputedRegion> region;
    std::size_t number;
  };

  // Of tensors without a graph, masks of dropout's are the region's own, and buffers others': which, is known when the
  // region's variables have gone.
  void give_up_unused(RecomputedRegion* around) {
    std::unordered_map<const c10::StorageImpl*, std::size_t> ours;  // references
    std::vector<std::pair<Undecided, std::shared_ptr<RecomputedRegion>>> all;
    for (Undecided& one : std::exchange(undecided_, {})) {
      auto region = one.region.lock();
      if (!region || !region->slots_[one.number].kept) continue;
      ours[storage_of(region->slots_[one.number])] += 1;
      all.emplace_back(std::move(one), std::move(region));
    }
    for (auto& [one, region] : all) {
      Slot& slot = region->slots_[one.number];
      const c10::StorageImpl* const storage = storage_of(slot);
      if (storage && slot.kept->tensor.storage().use_count() == ours[storage]) {
        ours[storage] -= 1;
        slot.kept.reset();
      } else if (around) {
        around->undecided_.push_back(std::move(one));  // it may be the other's own
      }
    }
  }

  static const c10::StorageImpl* storage_of(const Slot& slot) {
    return slot.kept->tensor.has_storage() ? slot.kept->tensor.storage().unsafeGetStorageImpl() : nullptr;
  }

  void begin_pass(int pass) {
    for (Slot& slot : slots_) slot.again.reset();
    pass_ = pass;
    if (pass == kNoPass) return;
    // What the pass has not fetched in the end.
    autograd::Engine::get_default_engine().queue_callback([region = weak_from_this(), pass] {
      const auto alive = region.lock();
      if (!alive) return;
      const std::lock_guard lock(alive->mutex_);
      if (alive->pass_ == pass) alive->begin_pass(kNoPass);
    });
  }

  bool is_wanted(std::size_t number, std::optional<std::size_t> only) const {
    return only ? number == *only : slots_[number].wanted && !slots_[number].kept;
  }

  // All that is wanted, or one.
  void compute_again(std::optional<std::size_t> only) {
    std::size_t count = slots_.size();
    while (!is_wanted(count - 1, only)) --count;
    for (const KeptTensor& leaf : leaves_) static_cast<void>(leaf.as_it_was());
    std::vector<at::Tensor> inputs;
    for (const RegionInput& input : inputs_) inputs.push_back(input.get());

    const WriteWatch::Pause unwatched;
    const WrittenTensors::AsBefore as_before(written_);
    rng::RankGenerators generators = copy_of(generators_);
    const rng::DefaultGeneratorGuard draws(generators);
    const AutocastsScope casts(autocasts_);
    const at::AutoGradMode with_graph(true);
    RecomputedRegion* const first_time = std::exchange(innermost_region, nullptr);
    std::size_t next = 0;
    try {
      const SavedTensorHooksScope hooks([&] { return make_again(next, count, only); });
      again_(inputs);
    } catch (const AllIsThere&) {
      innermost_region = first_time;
      return;
    } catch (...) {
      innermost_region = first_time;
      throw;
    }
    innermost_region = first_time;
    TORCH_CHECK(false, "nn::checkpoint: computed again, the function saved ", next,
                " tensors for its backward pass, and ", count, " or more before: it has to do the same both times");
  }

  std::unique_ptr<autograd::SavedVariableHooks> make_again(std::size_t& next, std::size_t count,
                                                           std::optional<std::size_t> only);

  void take(std::size_t number, const at::Tensor& tensor, std::optional<std::size_t> only) {
    if (!is_wanted(number, only)) return;
    Slot &slot = slots_[number], now;
    now.describe(tensor);
    TORCH_CHECK(now.sizes == slot.sizes && now.type == slot.type && now.device == slot.device,
                "nn::checkpoint: computed again, the function saved ", now.type, " ", now.sizes, " on ", now.device,
                " as tensor ", number, " for its backward pass, and ", slot.type, " ", slot.sizes, " on ", slot.device,
                " before: it has to do the same both times");
    slot.again.emplace(tensor);
  }

  std::recursive_mutex mutex_;  // a pass may run on threads of LibTorch's
  const std::function<void(const std::vector<at::Tensor>&)> again_;
  std::vector<RegionInput> inputs_;
  std::vector<KeptTensor> leaves_;
  const Autocasts autocasts_;
  const rng::RankGenerators generators_;
  WrittenTensors written_;
  RecomputedRegion* around_;  // that is computed around this one; not used once this one is left
  const std::uint64_t began_, outermost_began_;
  std::vector<Slot> slots_;
  std::vector<Undecided> undecided_;
  int pass_ = kNoPass;  // of which `again` is
};

// What a node has of a tensor that it has saved.
class SavedNumber final : public autograd::SavedVariableHooks {
 public:
  explicit SavedNumber(std::shared_ptr<RecomputedRegion> region) : region_(std::move(region)) {}
  ~SavedNumber() override {
    if (number_) region_->forget(*number_);
  }

  void call_pack_hook(const at::Tensor& tensor) override { number_ = region_->save(tensor); }
  at::Tensor call_unpack_hook() override { return region_->load(*number_); }
  void take_version() { region_->take_version(*number_); }

 private:
  const std::shared_ptr<RecomputedRegion> region_;
  std::optional<std::size_t> number_;
};

namespace {

void RegionInput::take_version() {
  if (kept_) kept_->take_version();
  if (auto* const outer = dynamic_cast<SavedNumber*>(hooks_.get())) outer->take_version();
}

}  // namespace

// Hands on what is computed again. It keeps the tensor as well, for gradients that the function itself takes.
class RecomputedRegion::SavedAgain final : public autograd::SavedVariableHooks {
 public:
  SavedAgain(RecomputedRegion& region, std::size_t& next, std::size_t count, std::optional<std::size_t> only)
      : region_(region), next_(next), count_(count), only_(only) {}

  void call_pack_hook(const at::Tensor& tensor) override {
    if (next_ >= count_) throw AllIsThere();
    region_.take(next_, tensor, only_);
    tensor_ = tensor.detach();
    next_ += 1;
    if (next_ == count_) throw AllIsThere();
  }
  at::Tensor call_unpack_hook() override { return tensor_; }

 private:
  RecomputedRegion& region_;
  std::size_t& next_;
  const std::size_t count_;
  const std::optional<std::size_t> only_;
  at::Tensor tensor_;
};

std::unique_ptr<autograd::SavedVariableHooks> RecomputedRegion::make_again(std::size_t& next, std::size_t count,
                                                                           std::optional<std::size_t> only) {
  return std::make_unique<SavedAgain>(*this, next, count, only);
}

// ---- while it is computed

class CheckpointedRegion::Scopes {
 public:
  explicit Scopes(const std::shared_ptr<RecomputedRegion>& region)
      : hooks_([region] { return std::make_unique<SavedNumber>(region); }), writes_(region->written()) {}

 private:
  const SavedTensorHooksScope hooks_;
  const WriteWatch writes_;
};

CheckpointedRegion::CheckpointedRegion(const std::vector<at::Tensor>& inputs,
                                       std::function<void(const std::vector<at::Tensor>&)> again)
    : region_(std::make_shared<RecomputedRegion>(inputs, std::move(again))),
      scopes_(std::make_unique<Scopes>(region_)) {}

CheckpointedRegion::~CheckpointedRegion() {
  if (!scopes_) return;
  scopes_.reset();
  region_->leave();
}

void CheckpointedRegion::end(const std::vector<at::Tensor>& outputs) {
  scopes_.reset();
  region_->end(outputs);
}

const at::Tensor& CheckpointedRegion::placeholder() {
  static const at::Tensor tensor = at::empty({0});
  return tensor;
}

}  // namespace tandem::nn::detail
