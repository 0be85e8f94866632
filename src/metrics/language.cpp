#include "tandem/metrics/language.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "metrics/checks.h"
#include "tandem/core/error.h"
#include "tandem/metrics/exact_sum.h"

namespace tandem::metrics {
namespace {

constexpr std::int64_t kMostAtOnce = 1 << 22;  // numbers of float64 that are made of logits at a time

}  // namespace

Perplexity::Perplexity(Rank& rank, LanguageOptions options) : Perplexity(rank, std::move(options), "Perplexity") {}

Perplexity::Perplexity(Rank& rank, LanguageOptions options, std::string name)
    : Metric(rank, name), options_(std::move(options)) {
  const at::Tensor& bytes = options_.bytes_of_token;
  if (bytes.defined() && (bytes.dim() != 1 || bytes.scalar_type() != at::kLong || bytes.lt(0).any().item<bool>()))
    throw ConfigError(name + ": bytes_of_token is " + c10::toString(bytes.scalar_type()) + " " +
                      c10::str(bytes.sizes()) + "; it has an int64, 0 or more, for each token");
  add_state("sum", Merge::sum, exact_zero());
  add_state("impossible", Merge::sum, at::zeros({}, at::kLong));  // tokens of probability 0
  add_state("tokens", Merge::sum, at::zeros({}, at::kLong));
  add_state("bytes", Merge::sum, at::zeros({}, at::kLong));
}

void Perplexity::add(const at::Tensor& outputs, const at::Tensor& targets) {
  if (!outputs.is_floating_point() || outputs.dim() != targets.dim() + 1 || outputs.size(-1) == 0 ||
      outputs.select(-1, 0).sizes() != targets.sizes())
    refuse(shapes(outputs, targets) + "; logits are floating-point numbers [N, …, tokens] for targets [N, …]");
  if (has_nan(outputs)) refuse("a logit is NaN");
  at::Tensor tokens = targets.flatten();
  if (!at::isIntegralType(tokens.scalar_type(), false)) refuse("targets are no integers");
  tokens = tokens.to(outputs.device(), at::kLong);
  const at::Tensor counted = (tokens != options_.ignored_target).nonzero().squeeze(1);
  tokens = tokens.index_select(0, counted);
  const std::int64_t vocabulary = outputs.size(-1);
  if (const std::string wrong = wrong_classes("targets", tokens, vocabulary); !wrong.empty()) refuse(wrong);
  if (options_.bytes_of_token.defined() && options_.bytes_of_token.size(0) != vocabulary)
    refuse("logits of " + std::to_string(vocabulary) + " tokens; bytes_of_token has " +
           std::to_string(options_.bytes_of_token.size(0)));
  const at::Tensor logits = outputs.flatten(0, -2);
  const std::int64_t rows = std::max<std::int64_t>(kMostAtOnce / vocabulary, 1);
  for (std::int64_t begin = 0; begin < tokens.size(0); begin += rows) {
    const std::int64_t count = std::min(rows, tokens.size(0) - begin);
    const at::Tensor some = logits.index_select(0, counted.narrow(0, begin, count)).to(at::kDouble);
    const at::Tensor losses =
        -some.log_softmax(-1).gather(1, tokens.narrow(0, begin, count).unsqueeze(1)).squeeze(1).cpu();
    const at::Tensor possible = at::isfinite(losses);
    state("impossible").add_(possible.logical_not().sum());
    exact_add(state("sum"), losses.masked_select(possible));
  }
  state("tokens").add_(tokens.numel());
  state("bytes").add_(
      options_.bytes_of_token.defined()
          ? options_.bytes_of_token.index_select(0, tokens.to(options_.bytes_of_token.device())).sum().cpu()
          : at::scalar_tensor(tokens.numel(), at::kLong));
}

at::Tensor Perplexity::result(const States& of_all) const {
  const bool impossible = of_all.at("impossible").item<std::int64_t>() > 0;
  const double mean = exact_value(of_all.at("sum")) / of_all.at("tokens").item<double>();
  return at::scalar_tensor(impossible ? std::numeric_limits<double>::infinity() : std::exp(mean), at::kDouble);
}

BitsPerByte::BitsPerByte(Rank& rank, LanguageOptions options) : Perplexity(rank, std::move(options), "BitsPerByte") {}

at::Tensor BitsPerByte::result(const States& of_all) const {
  const bool impossible = of_all.at("impossible").item<std::int64_t>() > 0;
  const double bits = exact_value(of_all.at("sum")) / std::log(2.0);
  return at::scalar_tensor(
      impossible ? std::numeric_limits<double>::infinity() : bits / of_all.at("bytes").item<double>(), at::kDouble);
}

}  // namespace tandem::metrics
