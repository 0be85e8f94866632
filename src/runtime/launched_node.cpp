#include "runtime/launched_node.h"

#include <c10/util/Exception.h>

#include "backend/backend.h"
#include "comm/error_text.h"
#include "comm/nodes/fields.h"
#include "comm/rank_group.h"
#include "tandem/core/error.h"
#include "tandem/version.h"

namespace tandem {
namespace {

// What has to be the same on all nodes, or ranks would make different calls, or different numbers of the same ones.
std::vector<comm::NamedValue> values_of(const AcceleratorState& state) {
  const LaunchConfig& config = state.config;
  const nn::GradientReducerOptions& reducer = config.gradient_reducer;
  const auto text = [](auto value) { return c10::str(value); };
  const auto on_or_off = [](bool value) -> std::string { return value ? "on" : "off"; };
  const auto number = [](auto value) { return std::to_string(static_cast<std::int64_t>(value)); };
  std::vector<comm::NamedValue> values{
      {"Tandem", TANDEM_VERSION},
      {"LibTorch", state.libtorch_version},
      {"the backend", state.backend_name},
      {"seed", text(config.seed)},
      {"mixed_precision", number(config.mixed_precision)},
      {"exact.logical_ranks", number(config.exact ? config.exact->logical_ranks : 0)},
      {"gradient_accumulation_steps", number(config.gradient_accumulation_steps)},
      {"sync_with_dataloader", on_or_off(config.sync_with_dataloader)},
      {"scheduler_steps_per_update", number(config.scheduler_steps_per_update)},
      {"fused_optimizers", on_or_off(config.fused_optimizers)},
      {"gradient_reducer.bucket_bytes", number(reducer.bucket_bytes)},
      {"gradient_reducer.first_bucket_bytes", number(reducer.first_bucket_bytes)},
      {"gradient_reducer.static_graph", on_or_off(reducer.static_graph)},
      {"data_loader.split_batches", on_or_off(config.data_loader.split_batches)},
      {"data_loader.even_batches", on_or_off(config.data_loader.even_batches)},
      {"data_loader.dispatch_batches",
       config.data_loader.dispatch_batches ? on_or_off(*config.data_loader.dispatch_batches) : "automatic"},
      {"data_loader.data_seed", config.data_loader.data_seed ? text(*config.data_loader.data_seed) : "none"},
  };
  // What products and sums are cut into depends on it.
  if (config.exact) values.push_back({"threads_per_rank", number(state.threads_per_rank)});
  return values;
}

comm::NodeCard card_of(const AcceleratorState& state) {
  comm::NodeCard card{.ranks = state.local_ranks(), .values = values_of(state)};
  for (const c10::Device device : state.devices)
    if (const std::string gpu = device.is_cpu() ? "" : state.backend->identity(device.index()); !gpu.empty())
      card.gpus.push_back(gpu);
  return card;
}

}  // namespace

LaunchedNode::LaunchedNode(const AcceleratorState& state) {
  const Nodes& nodes = *state.config.nodes;
  connection_.emplace(
      nodes, card_of(state), comm::JoinOptions{.progress = nodes.on_waiting, .stop = state.config.cancel},
      [this](const comm::NodeFailure& failure) { heard(failure); }, [this] { return doing(); });
  exchange_.emplace(connection_->link(), connection_->joined().ranks());
}

LaunchedNode::~LaunchedNode() {
  if (left_ || !exchange_) return;
  connection_->watchman().tell(
      failure_of(std::make_exception_ptr(Error("its process ended before its ranks did")), -1));
  connection_->watchman().leave();
}

// On the watchman's thread.
void LaunchedNode::heard(const comm::NodeFailure& failure) {
  const std::lock_guard lock(mutex_);
  failure_ = failure;
  if (token_) token_->cancel(std::make_exception_ptr(CollectiveError(failure.text)), failure.rank);
}

void LaunchedNode::begin(CancelToken& token) {
  if (std::exchange(begun_, true))
    throw ConfigError("a state of several nodes is for one launch; examine the configuration again for the next one");
  const std::lock_guard lock(mutex_);
  token_ = &token;
  if (failure_) token.cancel(std::make_exception_ptr(CollectiveError(failure_->text)), failure_->rank);
}

void LaunchedNode::show(const comm::RankGroup* group) {
  const std::lock_guard lock(mutex_);
  group_ = group;
}

// A rank that does not wait, from 1 (0: none), and what all do. On the watchman's thread.
std::string LaunchedNode::doing() {
  const std::lock_guard lock(mutex_);
  if (!group_) return "";
  const auto& place = exchange_->place();
  int running = place.first_rank + place.local_ranks - 1;
  while (running >= place.first_rank && group_->waits(running)) --running;
  std::string bytes;
  comm::add_field(bytes, std::to_string(running < place.first_rank ? 0 : running + 1));
  comm::add_field(bytes, group_->report());
  return bytes;
}

std::pair<std::string, int> LaunchedNode::ask_others() {
  std::string lines;
  int running = -1;
  const auto answers = connection_->watchman().ask_others();
  for (std::size_t node = 0; node < answers.size(); ++node) {
    if (answers[node].empty()) continue;
    try {
      comm::Fields fields(answers[node], static_cast<int>(node));
      const int its = static_cast<int>(fields.number(exchange_->place().world_size)) - 1;
      lines += '\n';
      lines += connection_->joined().name(static_cast<int>(node)) + ", " + fields.text();
      if (running < 0) running = its;
    } catch (const comm::LinkError&) {  // the time limit is what matters
    }
  }
  return {lines, running};
}

comm::NodeFailure LaunchedNode::failure_of(const std::exception_ptr& reason, int rank) const {
  // The rank to blame may be another node's, which has not come, say.
  const int node = rank < 0 ? exchange_->place().node : exchange_->node_of(rank);
  return {node, connection_->joined().cards[static_cast<std::size_t>(node)].host, rank, text_of(reason)};
}

std::optional<comm::NodeFailure> LaunchedNode::leave() {
  left_ = true;
  if (!token_->cancelled()) {
    try {
      connection_->leave();
    } catch (...) {
      token_->cancel(std::current_exception());
    }
    if (!token_->cancelled()) {
      {
        const std::lock_guard lock(mutex_);
        token_ = nullptr;
      }
      exchange_.reset();
      connection_.reset();  // the others' next launch is not to find this one's store
      return std::nullopt;
    }
  }
  comm::NodeFailure mine = failure_of(token_->reason(), token_->rank());
  // A link breaks because a node has gone, which may have said why.
  bool follows = false;
  try {
    std::rethrow_exception(token_->reason());
  } catch (const comm::LinkError& error) {
    follows = true;
    const auto& cards = connection_->joined().cards;
    if (const auto node = static_cast<std::size_t>(error.node()); node < cards.size())
      mine = {error.node(), cards[node].host, -1, error.what()};
  } catch (...) {
  }
  const auto failure = connection_->watchman().tell(mine, follows);
  connection_->watchman().leave();
  const std::lock_guard lock(mutex_);
  token_ = nullptr;
  if (failure.node == exchange_->place().node) return std::nullopt;
  return failure;
}

}  // namespace tandem
