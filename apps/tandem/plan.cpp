#include "plan.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <map>
#include <sstream>

#include "comm/rank_group.h"
#include "core/cancel_token.h"
#include "data/prepare_loader.h"
#include "tandem/runtime/launch_config.h"

namespace tandem_tool {
namespace {

using Json = nlohmann::json;
using tandem::ConfigError;
namespace data = tandem::data;

constexpr std::int64_t kMostRanks = 4096;
constexpr std::int64_t kMostSamples = 100'000'000;  // that can be listed

struct Indices : torch::data::datasets::BatchDataset<Indices, at::Tensor> {
  std::int64_t length;
  explicit Indices(std::int64_t length) : length(length) {}
  at::Tensor get_batch(c10::ArrayRef<std::size_t> indices) override {
    return at::tensor(std::vector<std::int64_t>(indices.begin(), indices.end()), at::kLong);
  }
  std::optional<std::size_t> size() const override { return static_cast<std::size_t>(length); }
};

// Counts 0 .. length-1, and does not say how many they are.
data::IterableDataset<std::int64_t> counting(std::int64_t length) {
  return data::IterableDataset([length](std::int64_t) {
    return [length, at = std::int64_t{0}]() mutable {
      return at < length ? std::optional<std::int64_t>(at++) : std::nullopt;
    };
  });
}

void require(bool holds, const std::string& otherwise) {
  if (!holds) throw ConfigError(otherwise);
}

void check(const PlanRequest& request) {
  const auto in_range = [](const char* name, std::int64_t value, std::int64_t least, std::int64_t most) {
    require(value >= least && value <= most, std::string(name) + " " + std::to_string(value) +
                                                 " is out of range; use " + std::to_string(least) + " to " +
                                                 std::to_string(most));
  };
  in_range("length", request.length, 0, kMostSamples);
  in_range("batch_size", request.batch_size, 1, kMostSamples);
  in_range("ranks", request.ranks, 1, kMostRanks);
  in_range("skip_batches", request.skip_batches, 0, std::numeric_limits<std::int64_t>::max());
  in_range("epochs", request.epochs, 0, 1'000'000);
}

// The loaders of all ranks, which one thread serves in turn: a step of rank 0, of rank 1, …
class AllRanks {
 public:
  template <class Dataset>
  AllRanks(const PlanRequest& request, Dataset dataset)
      : group_(request.ranks, token_), active_(static_cast<std::size_t>(request.ranks)) {
    const data::DataLoader loader(std::move(dataset), {.batch_size = request.batch_size,
                                                       .shuffle = request.shuffle,
                                                       .seed = request.seed,
                                                       .drop_last = request.drop_last});
    const data::DataLoaderConfiguration configuration{.split_batches = request.split_batches,
                                                      .dispatch_batches = request.dispatch,
                                                      .even_batches = request.even_batches,
                                                      .use_seedable_sampler = request.seedable_sampler};
    const std::uint64_t seed = request.seed.value_or(tandem::LaunchConfig().seed);
    const data::detail::AnyDataset any = loader.any_dataset();
    data::check_options(loader.options(), any.iterable());
    const auto plan = data::plan_options(loader.options(), configuration, any.length(), any.iterable(), request.ranks);
    const auto shared = data::make_shared_parts(loader.options(), any, configuration, seed, plan,
                                                {.local_ranks = request.ranks, .world_size = request.ranks}, token_);
    for (int rank = 0; rank < request.ranks; ++rank) {
      const data::LoaderContext context{
          .rank = rank, .group = &group_, .active = &active_[static_cast<std::size_t>(rank)], .device = {}};
      loaders_.push_back(data::make_loader(loader.options(), any, shared, seed, context));
    }
    for (const auto& prepared : loaders_)
      lengths_.push_back(any.iterable() ? std::nullopt : std::optional(prepared->len()));
    // Python's len is that of the loader before skipping, which it wraps.
    if (request.skip_batches > 0)
      for (auto& prepared : loaders_) prepared = prepared->skip_first_batches(request.skip_batches);
  }

  PlanResult::Epoch run_epoch() {
    PlanResult::Epoch epoch;
    epoch.ranks.resize(loaders_.size());
    std::vector<bool> ended(loaders_.size(), false);
    for (const auto& loader : loaders_) loader->start();
    while (!std::all_of(ended.begin(), ended.end(), [](bool end) { return end; })) {
      std::vector<std::int64_t> step;
      for (std::size_t rank = 0; rank < loaders_.size(); ++rank) {
        if (ended[rank]) continue;
        auto batch = loaders_[rank]->next();
        ended[rank] = !batch;
        if (!batch) continue;
        const at::Tensor& samples = batch.as<at::Tensor>();
        const auto* values = samples.const_data_ptr<std::int64_t>();
        epoch.ranks[rank].emplace_back(values, values + samples.numel());
        step.insert(step.end(), values, values + samples.numel());
      }
      // As Accelerator::gather_for_metrics, which joins the ranks' rows and keeps as many as rank 0's loader says.
      const std::int64_t keep = loaders_.front()->status().samples_to_keep;
      if (keep >= 0 && !ended.front()) step.resize(static_cast<std::size_t>(keep));
      epoch.gathered.insert(epoch.gathered.end(), step.begin(), step.end());
    }
    epoch.remainder = loaders_.front()->remainder();
    return epoch;
  }

  const std::vector<std::optional<std::int64_t>>& lengths() const { return lengths_; }

 private:
  tandem::CancelToken token_;
  tandem::comm::RankGroup group_;
  std::vector<data::ActiveLoaders> active_;
  std::vector<std::shared_ptr<data::LoaderBase>> loaders_;
  std::vector<std::optional<std::int64_t>> lengths_;
};

std::int64_t whole_number(const Json& value, const std::string& key) {
  require(value.is_number_integer(), "'" + key + "' is " + value.dump() + "; use a whole number");
  require(!value.is_number_unsigned() ||
              value.get<std::uint64_t>() <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()),
          "'" + key + "' is " + value.dump() + ", which is too large");
  return value.get<std::int64_t>();
}

bool truth(const Json& value, const std::string& key) {
  require(value.is_boolean(), "'" + key + "' is " + value.dump() + "; use true or false");
  return value.get<bool>();
}

std::string join(const std::vector<std::int64_t>& numbers) {
  std::string text;
  for (const std::int64_t number : numbers) {
    if (!text.empty()) text += ' ';
    text += std::to_string(number);
  }
  return text;
}

}  // namespace

PlanResult run_plan(const PlanRequest& request) {
  check(request);
  AllRanks ranks =
      request.iterable ? AllRanks(request, counting(request.length)) : AllRanks(request, Indices(request.length));
  PlanResult result;
  for (std::int64_t epoch = 0; epoch < request.epochs; ++epoch) result.epochs.push_back(ranks.run_epoch());
  result.prepared_len = ranks.lengths();
  return result;
}

nlohmann::ordered_json to_json(const PlanResult& result) {
  nlohmann::ordered_json json{{"epochs", nlohmann::ordered_json::array()},
                              {"prepared_len", nlohmann::ordered_json::array()}};
  for (const auto& epoch : result.epochs)
    json["epochs"].push_back({{"ranks", epoch.ranks}, {"remainder", epoch.remainder}, {"gathered", epoch.gathered}});
  for (const auto& length : result.prepared_len)
    json["prepared_len"].push_back(length ? nlohmann::ordered_json(*length) : nlohmann::ordered_json(nullptr));
  return json;
}

PlanRequest plan_request_from_json(const Json& json) {
  require(json.is_object(), "a configuration is " + json.dump() + "; use a JSON object");
  PlanRequest request;
  const auto number_into = [](std::int64_t& target) {
    return [&target](const Json& value, const std::string& key) { target = whole_number(value, key); };
  };
  const auto truth_into = [](bool& target) {
    return [&target](const Json& value, const std::string& key) { target = truth(value, key); };
  };
  const std::map<std::string, std::function<void(const Json&, const std::string&)>> keys{
      {"length", number_into(request.length)},
      {"batch_size", number_into(request.batch_size)},
      {"ranks",
       [&](const Json& value, const std::string& key) {
         request.ranks = static_cast<int>(std::clamp<std::int64_t>(whole_number(value, key), -1, kMostRanks + 1));
       }},
      {"drop_last", truth_into(request.drop_last)},
      {"even_batches", truth_into(request.even_batches)},
      {"split_batches", truth_into(request.split_batches)},
      {"dispatch", truth_into(request.dispatch)},
      {"iterable", truth_into(request.iterable)},
      {"shuffle", truth_into(request.shuffle)},
      {"seed",
       [&](const Json& value, const std::string& key) {
         if (value.is_null()) return;
         const std::int64_t seed = whole_number(value, key);
         require(seed >= 0, "'seed' is " + value.dump() + "; use 0 to 2^63-1");
         request.seed = static_cast<std::uint64_t>(seed);
       }},
      {"seedable_sampler", truth_into(request.seedable_sampler)},
      {"skip_batches", number_into(request.skip_batches)},
      {"epochs", number_into(request.epochs)}};
  for (const auto& [key, value] : json.items()) {
    const auto found = keys.find(key);
    require(found != keys.end(), "the key '" + key + "' is unknown");
    found->second(value, key);
  }
  for (const char* needed : {"length", "batch_size", "ranks"})
    require(json.contains(needed), "the key '" + std::string(needed) + "' is missing");
  return request;
}

std::string to_text(const PlanResult& result) {
  std::ostringstream text;
  for (std::size_t number = 0; number < result.epochs.size(); ++number) {
    const auto& epoch = result.epochs[number];
    text << "epoch " << number << "  (remainder " << epoch.remainder << ", " << epoch.gathered.size()
         << " samples gathered for metrics)\n";
    std::size_t steps = 0;
    for (const auto& rank : epoch.ranks) steps = std::max(steps, rank.size());
    for (std::size_t step = 0; step < steps; ++step) {
      text << "  step " << step << "  ";
      for (std::size_t rank = 0; rank < epoch.ranks.size(); ++rank)
        text << (rank > 0 ? "  |  " : "")
             << (step < epoch.ranks[rank].size() ? join(epoch.ranks[rank][step]) : std::string("-"));
      text << '\n';
    }
  }
  text << "length of the prepared loader by rank: ";
  for (std::size_t rank = 0; rank < result.prepared_len.size(); ++rank)
    text << (rank > 0 ? ", " : "")
         << (result.prepared_len[rank] ? std::to_string(*result.prepared_len[rank]) : std::string("unknown"));
  text << '\n';
  return text.str();
}

}  // namespace tandem_tool
