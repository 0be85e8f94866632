#include "tandem/nn/gradient_reducer.h"

#include <optional>
#include <sstream>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "tandem/core/error.h"

namespace tandem::nn {
namespace {

std::string describe(const std::pair<std::string, at::Tensor>& named) {
  std::ostringstream text;
  text << named.first << ' ' << c10::toString(named.second.scalar_type()) << c10::str(named.second.sizes());
  return text.str();
}

// What is wrong with `mine` when `main` is what rank 0 has; nothing when they are alike.
std::optional<std::string> difference(const char* kind, int rank, const NamedTensors& mine, const NamedTensors& main) {
  for (std::size_t i = 0; i < std::max(mine.size(), main.size()); ++i) {
    const std::string here = i < mine.size() ? describe(mine[i]) : "nothing";
    const std::string there = i < main.size() ? describe(main[i]) : "nothing";
    if (here != there)
      return "the model differs between ranks: " + std::string(kind) + ' ' + std::to_string(i) + " is " + here +
             " on rank " + std::to_string(rank) + " and " + there + " on rank 0; build the same model on every rank";
  }
  return std::nullopt;
}

}  // namespace

struct GradientReducer::Reached {
  explicit Reached(std::size_t parameters, const CancelToken& cancel) : flags(parameters, 0), token(cancel) {}
  std::vector<std::uint8_t> flags;
  const CancelToken& token;
};

GradientReducer::GradientReducer(NamedTensors parameters, NamedTensors buffers, comm::Communicator& communicator,
                                 comm::RankGroup& group)
    : parameters_(std::move(parameters)),
      buffers_(std::move(buffers)),
      communicator_(communicator),
      reached_(std::make_shared<Reached>(parameters_.size(), group.token())) {
  check_same_on_all_ranks(group);
  for (const auto& [name, tensor] : buffers_) buffer_list_.push_back(tensor);
  broadcast(0);

  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const at::Tensor& parameter = parameters_[i].second;
    if (!parameter.requires_grad()) continue;
    // A long backward pass ends here when another rank has failed. The hook may outlive the reducer's launch only
    // if the reducer does, so it holds no more than the flags.
    hooks_.emplace_back(parameter, parameter.register_hook([reached = reached_, i](const at::Tensor&) {
      reached->token.check();
      reached->flags[i] = 1;
    }));
  }
}

GradientReducer::~GradientReducer() {
  for (auto& [parameter, hook] : hooks_) parameter.remove_hook(hook);
}

void GradientReducer::check_same_on_all_ranks(comm::RankGroup& group) const {
  const auto record = comm::describe_object_call(comm::Operation::prepare, typeid(GradientReducer));
  const int rank = communicator_.rank();
  const comm::RankGroup::Call call(group, rank, record, this);
  const auto& main = call.payload<GradientReducer>(0);
  auto problem = difference("parameter", rank, parameters_, main.parameters_);
  if (!problem) problem = difference("buffer", rank, buffers_, main.buffers_);
  if (problem) throw ConfigError(*problem);
}

std::vector<at::Tensor> GradientReducer::gradients_reached_anywhere() {
  at::Tensor flags =
      at::from_blob(reached_->flags.data(), {static_cast<std::int64_t>(reached_->flags.size())}, at::kByte);
  communicator_.all_reduce(flags, comm::ReduceOp::max);
  std::vector<at::Tensor> gradients;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    if (!reached_->flags[i]) continue;
    reached_->flags[i] = 0;
    at::Tensor& gradient = parameters_[i].second.mutable_grad();
    if (!gradient.defined()) gradient = at::zeros_like(parameters_[i].second, at::MemoryFormat::Preserve);
    gradients.push_back(gradient);
  }
  return gradients;
}

void GradientReducer::reduce(comm::ReduceOp op, double scale, int main) {
  const at::NoGradGuard no_grad;
  const auto gradients = gradients_reached_anywhere();
  communicator_.all_reduce(gradients, op);
  if (scale != 1.0)
    for (const at::Tensor& gradient : gradients) gradient.detach().mul_(scale);
  if (!buffer_list_.empty() && communicator_.world_size() > 1) communicator_.broadcast(buffer_list_, main);
}

void GradientReducer::clear_gradients() {
  for (auto& [name, parameter] : parameters_) parameter.mutable_grad().reset();
}

void GradientReducer::broadcast(int root) {
  std::vector<at::Tensor> everything(buffer_list_);
  for (const auto& [name, parameter] : parameters_) everything.push_back(parameter);
  communicator_.broadcast(everything, root);
}

void GradientReducer::scale_unreduced(double factor) {
  const at::NoGradGuard no_grad;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const at::Tensor& gradient = parameters_[i].second.grad();
    if (reached_->flags[i] && gradient.defined()) gradient.detach().mul_(factor);
  }
}

}  // namespace tandem::nn
