#include "tandem/nn/communication_hooks.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>

#include "tandem/core/error.h"

namespace tandem::nn {
namespace {

using comm::ReduceOp;

bool is_full_precision(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kDouble;
}

CommunicationHook compression(at::ScalarType type) {
  return [type](GradientBucket& bucket, comm::Communicator& communicator) -> FinishReduction {
    const bool compresses = is_full_precision(bucket.gradients);
    const at::Tensor sent = compresses ? bucket.gradients.to(type) : bucket.gradients;
    const auto number = communicator.start_all_reduce(sent, sent, ReduceOp::mean);
    return [&bucket, &communicator, sent, number, compresses] {
      communicator.wait(number);
      if (compresses) bucket.gradients.copy_(sent);
    };
  };
}

// [n, m]; a view where memory allows it.
at::Tensor as_matrix(const at::Tensor& gradient) { return gradient.flatten(1); }

// An orthonormal basis of the columns' space; of more than that where they are dependent, also where they are 0.
at::Tensor orthonormal(const at::Tensor& columns) { return std::get<0>(at::linalg_qr(columns)); }

void forget_what_is_not_finite(at::Tensor& carried) { at::nan_to_num_(carried, 0.0, 0.0, 0.0); }

class PowerSgd {
 public:
  explicit PowerSgd(const PowerSgdOptions& options)
      : options_(options), generator_(at::make_generator<at::CPUGeneratorImpl>(options.random_seed)) {}

  struct CompressedGradient {
    std::size_t index;  // in the bucket
    at::Tensor p;
  };

  // What is on its way from `start` to `finish`.
  struct StartedBucket {
    std::vector<CompressedGradient> compressed;
    std::uint64_t number = 0;  // of the reduction
  };

  StartedBucket start(GradientBucket& bucket, comm::Communicator& communicator) {
    StartedBucket started;
    std::vector<at::Tensor> sent;
    for (std::size_t i = 0; i < bucket.parts.size(); ++i) {
      at::Tensor& part = bucket.parts[i];
      State& state = state_of(bucket.parameters[i], part);
      const bool compresses = state.reductions >= options_.start_powerSGD_iter && rank_of(part) > 0;
      state.reductions += 1;
      if (!compresses) {
        sent.push_back(part);
        continue;
      }
      if (state.error.defined()) part.add_(state.error);
      prepare_q(state, part);
      started.compressed.push_back({i, at::matmul(as_matrix(part), state.q)});
      sent.push_back(started.compressed.back().p);
    }
    started.number = communicator.start_all_reduce(sent, sent, ReduceOp::mean);
    return started;
  }

  void finish(GradientBucket& bucket, comm::Communicator& communicator, StartedBucket& started) {
    communicator.wait(started.number);
    if (started.compressed.empty()) return;
    std::vector<at::Tensor> qs;
    for (auto& [index, p] : started.compressed) {
      p = orthonormal(p);
      qs.push_back(at::matmul(as_matrix(bucket.parts[index]).t(), p));
    }
    communicator.all_reduce(qs, ReduceOp::mean);
    for (std::size_t k = 0; k < qs.size(); ++k) {
      const auto& [index, p] = started.compressed[k];
      at::Tensor& part = bucket.parts[index];
      State& state = state_of(bucket.parameters[index], part);
      const at::Tensor result = at::matmul(p, qs[k].t()).view(part.sizes());
      if (options_.use_error_feedback) {
        // `part` is what this rank had to send.
        if (!state.error.defined()) state.error = at::empty_like(part);
        at::sub_out(state.error, part, result);
        forget_what_is_not_finite(state.error);
      }
      part.copy_(result);
      state.q = options_.warm_start ? std::move(qs[k]) : at::Tensor();
    }
  }

 private:
  // Of a parameter, as long as its gradients are of one kind.
  struct State {
    at::Tensor parameter;  // keeps its address from being another's
    c10::DimVector sizes;
    at::ScalarType type{};
    at::Device device = at::kCPU;

    std::int64_t reductions = 0;
    at::Tensor error{};  // of this rank, in the parameter's shape
    at::Tensor q{};      // [m, rank]
  };

  // The rank to which `gradient` is compressed; 0: it is not.
  std::int64_t rank_of(const at::Tensor& gradient) const {
    if (gradient.dim() < 2 || gradient.numel() == 0 || !is_full_precision(gradient)) return 0;
    const std::int64_t n = gradient.size(0), m = gradient.numel() / n;
    const std::int64_t rank = std::min<std::int64_t>({n, m, options_.matrix_approximation_rank});
    const auto compressed = static_cast<double>((n + m) * rank);
    return compressed * options_.min_compression_rate < static_cast<double>(n * m) ? rank : 0;
  }

  State& state_of(const at::Tensor& parameter, const at::Tensor& gradient) {
    State& state = states_[parameter.unsafeGetTensorImpl()];
    const bool known = state.parameter.defined() && state.sizes == gradient.sizes() &&
                       state.type == gradient.scalar_type() && state.device == gradient.device();
    if (!known)
      state = {.parameter = parameter,
               .sizes = c10::DimVector(gradient.sizes()),
               .type = gradient.scalar_type(),
               .device = gradient.device()};
    return state;
  }

  // The Q to begin from, the same on all ranks. Orthonormal, so that one of dependent columns (after a gradient of 0,
  // for example) finds other directions again.
  void prepare_q(State& state, const at::Tensor& gradient) {
    if (state.q.defined()) {
      forget_what_is_not_finite(state.q);
    } else {
      const std::int64_t m = gradient.numel() / gradient.size(0);
      state.q = at::randn({m, rank_of(gradient)}, generator_, gradient.options().device(at::kCPU));
      state.q = state.q.to(gradient.device());
    }
    state.q = orthonormal(state.q);
  }

  PowerSgdOptions options_;
  at::Generator generator_;
  std::unordered_map<const at::TensorImpl*, State> states_;
};

}  // namespace

CommunicationHook bf16_compression() { return compression(at::kBFloat16); }

CommunicationHook fp16_compression() { return compression(at::kHalf); }

CommunicationHook power_sgd(const PowerSgdOptions& options) {
  if (options.matrix_approximation_rank < 1)
    throw ConfigError("power_sgd with matrix_approximation_rank " + std::to_string(options.matrix_approximation_rank) +
                      "; use 1 or more");
  if (options.start_powerSGD_iter < 0)
    throw ConfigError("power_sgd with start_powerSGD_iter " + std::to_string(options.start_powerSGD_iter) +
                      "; use 0 or more");
  if (!(options.min_compression_rate > 0) || std::isinf(options.min_compression_rate))
    throw ConfigError("power_sgd with min_compression_rate " + std::to_string(options.min_compression_rate) +
                      "; use a number above 0");
  return [shared = std::make_shared<PowerSgd>(options)](GradientBucket& bucket,
                                                        comm::Communicator& communicator) -> FinishReduction {
    auto started = std::make_shared<PowerSgd::StartedBucket>(shared->start(bucket, communicator));
    return [&bucket, &communicator, shared, started] { shared->finish(bucket, communicator, *started); };
  };
}

}  // namespace tandem::nn
