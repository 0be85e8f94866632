#include "tandem/runtime/check_exact.h"

#include <algorithm>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include <ATen/Context.h>

#include "runtime/check_config.h"
#include "runtime/exact_trace.h"
#include "runtime/launch_observer.h"
#include "runtime/rank_training.h"
#include "tandem/core/error.h"

namespace tandem {
namespace {

using Windows = std::vector<TracedWindow>;
using Calls = std::vector<TracedCall>;

// Records what all ranks of a launch compute.
class TracedLaunch final : public LaunchObserver {
 public:
  TracedLaunch(std::size_t ranks, std::int64_t windows) : windows_(windows), traces_(ranks), of_ranks_(ranks) {}

  void before_ranks(comm::RankGroup&) override {
    // So that what kernels leave of fresh memory is no difference. The launch sets it back.
    at::globalContext().setDeterministicFillUninitializedMemory(true);
  }
  void after_ranks() noexcept override {}

  void before_body(RankTraining& training) override {
    auto& trace = traces_[rank_of(training)];
    trace = std::make_unique<ExactTrace>(training.context, training.parts, windows_);
    training.exact->record_in(trace.get());
  }
  void body_ended(RankTraining& training) override { traces_[rank_of(training)]->end_window(); }
  void after_body(RankTraining& training) noexcept override {
    training.exact->record_in(nullptr);
    auto& trace = traces_[rank_of(training)];
    if (trace) of_ranks_[rank_of(training)] = trace->take();
    trace.reset();
  }
  void rank_ended() noexcept override {}
  bool holds_ranks() const override { return false; }

  std::vector<Windows> take() { return std::move(of_ranks_); }

 private:
  static std::size_t rank_of(const RankTraining& training) { return static_cast<std::size_t>(training.context.rank); }

  const std::int64_t windows_;
  std::vector<std::unique_ptr<ExactTrace>> traces_;
  std::vector<Windows> of_ranks_;
};

// What one of the two trainings has computed.
struct Training {
  std::string ranks;            // "2 ranks"
  std::vector<Windows> traces;  // by rank

  const Windows& windows() const { return traces.front(); }
  const TracedWindow* of_rank(std::size_t rank, std::size_t window) const {
    return traces[rank].size() > window ? &traces[rank][window] : nullptr;
  }

  // Of all logical shards.
  template <class Value>
  std::map<int, Value> of_shards(std::map<int, Value> TracedWindow::*values, std::size_t window) const {
    std::map<int, Value> all;
    for (std::size_t rank = 0; rank < traces.size(); ++rank)
      if (const TracedWindow* traced = of_rank(rank, window))
        all.insert((traced->*values).begin(), (traced->*values).end());
    return all;
  }
};

std::string ranks_text(std::size_t ranks) { return std::to_string(ranks) + (ranks == 1 ? " rank" : " ranks"); }

// What a rank has at the end of its body is of windows after its last too, where others have more.
void forget_ends(std::vector<Windows>& traces) {
  for (Windows& windows : traces) {
    if (windows.empty() || windows.size() >= traces.front().size()) continue;
    windows.back().state.clear();
    windows.back().generators.clear();
  }
}

Training train(const LaunchConfig& config, const std::function<void(Accelerator&)>& body, std::int64_t windows) {
  const auto ranks = static_cast<std::size_t>(config.cpu ? *config.cpu : static_cast<int>(config.devices.size()));
  TracedLaunch traced(ranks, windows);
  try {
    launch(config, body, &traced);
  } catch (const RankError& error) {
    try {
      error.rethrow_cause();
    } catch (const EnoughWindows&) {
    } catch (...) {
      throw error;
    }
  }
  Training training{ranks_text(ranks), traced.take()};
  forget_ends(training.traces);
  return training;
}

// The first of two states that differs, by name; empty: none.
std::string different_state(const TracedWindow& one, const TracedWindow& other) {
  for (std::size_t i = 0; i < one.state.size(); ++i)
    if (i >= other.state.size() || one.state[i] != other.state[i]) return one.state[i].first;
  return other.state.size() > one.state.size() ? other.state[one.state.size()].first : "";
}

std::string different_rank(const Training& training, std::size_t window) {
  for (std::size_t rank = 1; rank < training.traces.size(); ++rank)
    if (const TracedWindow* traced = training.of_rank(rank, window); traced && !traced->state.empty())
      if (const std::string state = different_state(training.windows()[window], *traced); !state.empty())
        return state + ", which is another on rank " + std::to_string(rank) + " than on rank 0 of " + training.ranks;
  return "";
}

std::string different_generator(const Training& one, const Training& other, std::size_t window) {
  const auto others = other.of_shards(&TracedWindow::generators, window);
  for (const auto& [shard, hash] : one.of_shards(&TracedWindow::generators, window))
    if (const auto found = others.find(shard); found != others.end() && found->second != hash)
      return "the generator of logical shard " + std::to_string(shard);
  return "";
}

std::string different_window(const Training& one, const Training& other, std::size_t window) {
  std::string state = different_state(one.windows()[window], other.windows()[window]);
  if (state.empty()) state = different_rank(one, window);
  if (state.empty()) state = different_rank(other, window);
  return state.empty() ? different_generator(one, other, window) : state;
}

std::string called(const TracedCall& call) { return call.name + " " + call.place; }

// What is different of two calls; empty: nothing.
std::string different_call(const TracedCall& one, const TracedCall& other) {
  if (one.name != other.name || one.inputs.size() != other.inputs.size())
    return called(one) + " was called where the other training called " + called(other);
  for (std::size_t i = 0; i < one.inputs.size(); ++i) {
    if (one.inputs[i].hash == other.inputs[i].hash) continue;
    const std::string maker = one.inputs[i].made_by.empty() ? "" : " (whose backward is " + one.inputs[i].made_by + ")";
    return "argument " + std::to_string(one.inputs[i].argument) + " of " + called(one) +
           " had other values, which no operator of LibTorch" +
           " has made: they come from the data, from a hook, or from code that writes to memory itself" + maker;
  }
  return one.outputs == other.outputs ? "" : called(one) + " gave other values for the same inputs";
}

// What is different first of the calls of a shard, and at which of them.
std::pair<std::size_t, std::string> different_calls(const Calls& one, const Calls& other) {
  const std::size_t both = std::min(one.size(), other.size());
  for (std::size_t i = 0; i < both; ++i)
    if (std::string text = different_call(one[i], other[i]); !text.empty()) return {i, std::move(text)};
  if (one.size() == other.size()) return {both, ""};
  const TracedCall& more = one.size() > both ? one[both] : other[both];
  return {both, called(more) + " was called in one training only"};
}

// The shards compute at the same time, so the first is that with the fewest calls before it.
std::string source_of(const Training& one, const Training& other, std::size_t window) {
  const auto others = other.of_shards(&TracedWindow::calls, window);
  std::pair<std::size_t, std::string> first;
  for (const auto& [shard, calls] : one.of_shards(&TracedWindow::calls, window)) {
    const auto found = others.find(shard);
    if (found == others.end()) continue;
    auto [place, text] = different_calls(calls, found->second);
    if (text.empty() || (!first.second.empty() && first.first <= place)) continue;
    first = {place, std::move(text) + ", in logical shard " + std::to_string(shard)};
  }
  if (!first.second.empty()) return first.second;
  return "all that forward and backward passes called gave the same, so look at what is done between a backward pass "
         "and the next window: the optimizer, its learning rate, what the program writes to weights and gradients";
}

std::optional<ExactDifference> difference_of(const Training& one, const Training& other) {
  const std::size_t both = std::min(one.windows().size(), other.windows().size());
  for (std::size_t window = 0; window < both; ++window)
    if (std::string state = different_window(one, other, window); !state.empty())
      return ExactDifference{static_cast<std::int64_t>(window + 1), std::move(state), source_of(one, other, window)};
  if (one.windows().size() == other.windows().size()) return std::nullopt;
  return ExactDifference{static_cast<std::int64_t>(both + 1), "the number of windows",
                         std::to_string(one.windows().size()) + " with " + one.ranks + ", " +
                             std::to_string(other.windows().size()) + " with " + other.ranks};
}

LaunchConfig on_devices(LaunchConfig config, const std::vector<c10::Device>& devices) {
  config.cpu.reset();
  config.gpus.reset();
  config.devices.clear();
  if (devices.front().is_cpu())
    config.cpu = static_cast<int>(devices.size());
  else
    for (const c10::Device device : devices) config.devices.push_back(device.index());
  return config;
}

}  // namespace

std::string ExactCheck::text() const {
  const std::string both =
      ranks_text(static_cast<std::size_t>(ranks)) + " and " + ranks_text(static_cast<std::size_t>(other_ranks));
  if (!difference && windows == 0) return both + " have closed no window, so nothing was compared";
  if (!difference)
    return both + " have made the same weights, buffers and generators in " + std::to_string(windows) +
           (windows == 1 ? " window" : " windows") + ", to the bit";
  return both + " part in window " + std::to_string(difference->window) + ": " + difference->state +
         " differs after it; " + difference->source;
}

ExactCheck check_exact(const LaunchConfig& config, const std::function<void(Accelerator&)>& body,
                       std::int64_t windows) {
  if (windows < 1)
    throw ConfigError("check_exact of " + std::to_string(windows) + " windows compares nothing; use 1 or more");
  if (spans_nodes(config)) throw ConfigError("check_exact with several machines; compare a training of one process");
  LaunchConfig exact = config;
  if (!exact.exact) exact.exact.emplace();
  if (exact.exact->logical_ranks == 1)
    throw ConfigError("check_exact with one logical rank, which only one rank can train; use 2 or more");
  const auto devices = examine(exact).devices;
  const std::vector<c10::Device> others(devices.size() == 1 ? 2 : 1, devices.front());
  const Training one = train(on_devices(exact, devices), body, windows);
  const Training other = train(on_devices(exact, others), body, windows);
  ExactCheck check{.ranks = static_cast<int>(devices.size()), .other_ranks = static_cast<int>(others.size())};
  check.difference = difference_of(one, other);
  check.windows = check.difference ? check.difference->window
                                   : static_cast<std::int64_t>(std::min(one.windows().size(), other.windows().size()));
  return check;
}

}  // namespace tandem
