#include "table_file.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>

#include "fingerprint.h"
#include "printable.h"
#include "tandem/core/error.h"
#include "tandem/io/safetensors.h"

namespace train {
namespace {

constexpr std::int64_t kMostClasses = 65'536;

constexpr std::array kIntegers{at::kLong, at::kInt,    at::kShort,  at::kChar,
                               at::kByte, at::kUInt16, at::kUInt32, at::kBool};
constexpr std::array kFloats{at::kFloat, at::kDouble, at::kHalf, at::kBFloat16};

template <class Types>
bool is_one_of(const Types& types, at::ScalarType type) {
  return std::find(types.begin(), types.end(), type) != types.end();
}

std::string sizes_of(const at::Tensor& tensor) { return c10::str(tensor.sizes()); }

// Whether a file begins as text, such as CSV.
bool is_text(const std::string& path) {
  std::array<char, 64> begin{};
  std::ifstream file(path, std::ios::binary);
  file.read(begin.data(), begin.size());
  const char* const first = begin.data();
  const char* const end = first + file.gcount();
  return end != first && std::all_of(first, end, [](char byte) {
           const auto value = static_cast<unsigned char>(byte);
           return value >= ' ' || byte == '\n' || byte == '\r' || byte == '\t';
         });
}

// A file that a flag names.
class TableFile {
 public:
  TableFile(std::string flag, std::string path) : flag_(std::move(flag)), path_(std::move(path)) {
    try {
      tensors_ = tandem::io::load_safetensors(path_);
    } catch (const tandem::CheckpointError& error) {
      if (std::error_code unknown; !std::filesystem::exists(path_, unknown))
        throw tandem::ConfigError(flag_ + ": " + error.what());
      throw tandem::ConfigError(flag_ + ": " + (is_text(path_) ? path_ + ": is text" : std::string(error.what())) +
                                "; a table is a safetensors file with the tensors 'inputs' and 'targets', which a few "
                                "lines of Python make of CSV (docs/train.md, Data), and text is for --model gpt or "
                                "gpt2");
    }
  }

  Table read() const {
    Table table{.inputs = inputs(), .targets = targets()};
    if (table.targets.size(0) != table.size())
      fail("'inputs' has " + counted(table.size(), "sample") + ", 'targets' has " +
           std::to_string(table.targets.size(0)) + "; they must be as many");
    if (table.size() == 0) fail("has no samples");
    table.outputs = table.has_labels() ? table.targets.max().item<std::int64_t>() + 1 : table.targets.size(1);
    return table;
  }

  [[noreturn]] void fail(const std::string& problem) const {
    throw tandem::ConfigError(flag_ + " " + path_ + ": " + problem);
  }

 private:
  at::Tensor inputs() const {
    const at::Tensor stored = find("inputs");
    const std::string what = "'inputs' has sizes " + sizes_of(stored);
    if (stored.dim() < 2) fail(what + "; use [N, F], a row for each sample, or more dimensions");
    if (stored.size(0) > 0 && stored.numel() == 0) fail(what + ", so that a sample has no numbers");
    check_type(stored, "inputs", is_one_of(kIntegers, stored.scalar_type()));
    return finite(stored, "inputs");
  }

  at::Tensor targets() const {
    const at::Tensor stored = find("targets");
    const bool labels = is_one_of(kIntegers, stored.scalar_type());
    const std::string what = "'targets' has sizes " + sizes_of(stored);
    if (stored.dim() < 1 || stored.dim() > 2) fail(what + "; use [N], or [N, K] for K numbers a sample");
    if (stored.size(0) > 0 && stored.numel() == 0) fail(what + ", so that a sample has no target");
    if (labels) return checked_labels(stored);
    check_type(stored, "targets", false);
    return finite(stored.dim() == 1 ? stored.unsqueeze(1) : stored, "targets");
  }

  at::Tensor checked_labels(const at::Tensor& stored) const {
    if (stored.dim() == 2 && stored.size(1) > 1)
      fail("'targets' are integers of sizes " + sizes_of(stored) +
           "; a sample has one label: use [N], or floating-point numbers where they are no labels");
    const at::Tensor labels = stored.flatten().to(at::kLong);
    if (labels.numel() == 0) return labels;
    const auto fail_at = [&](const at::Tensor& at, const std::string& why) {
      const auto sample = at.item<std::int64_t>();
      fail("'targets' has the label " + std::to_string(labels[sample].item<std::int64_t>()) + " at sample " +
           std::to_string(sample) + why);
    };
    const std::string right = "; labels count from 0; use floating-point numbers where they are none";
    if (labels.min().item<std::int64_t>() < 0) fail_at(labels.argmin(), ", which is negative" + right);
    if (labels.max().item<std::int64_t>() >= kMostClasses)
      fail_at(labels.argmax(), ", beyond the " + std::to_string(kMostClasses) + " classes that are possible" + right);
    return labels;
  }

  void check_type(const at::Tensor& stored, const std::string& name, bool also) const {
    const at::ScalarType type = stored.scalar_type();
    if (!also && !is_one_of(kFloats, type))
      fail("'" + name + "' has the type " + c10::toString(type) +
           "; use float32, another of float16 to float64, or integers of up to 32 bits or int64");
  }

  at::Tensor finite(const at::Tensor& stored, const std::string& name) const {
    const at::Tensor numbers = stored.to(at::kFloat).contiguous();
    const at::Tensor wrong = numbers.isfinite().logical_not().flatten(1).any(1).nonzero();
    if (wrong.numel() > 0)
      fail("'" + name + "' has a number at sample " + std::to_string(wrong[0].item<std::int64_t>()) +
           " that is NaN, infinite or beyond float32");
    return numbers;
  }

  at::Tensor find(const std::string& name) const {
    std::string names;
    for (const auto& [its, tensor] : tensors_) {
      if (its == name) return tensor;
      names += (names.empty() ? "" : ", ") + its;
    }
    constexpr std::size_t kShown = 200;
    if (names.size() > kShown) names = names.substr(0, kShown) + " …";
    fail("has no tensor '" + name + "'; it has " + (names.empty() ? "none" : names));
  }

  std::string flag_, path_;
  tandem::io::NamedTensors tensors_;
};

Table rows(const Table& table, const at::Tensor& samples) {
  return {table.inputs.index_select(0, samples), table.targets.index_select(0, samples), table.outputs};
}

Tables split(const Table& table, const TableFile& file, double share, std::uint64_t seed) {
  if (table.size() < 2) file.fail("has one sample; use two or more, to train on and to judge by, or --val-file");
  const auto wanted = static_cast<std::int64_t>(std::llround(share * static_cast<double>(table.size())));
  const std::int64_t held_out = std::clamp<std::int64_t>(wanted, 1, table.size() - 1);
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const at::Tensor order = at::randperm(table.size(), generator, at::kLong);
  const auto part = [&](std::int64_t begin, std::int64_t size) {
    return rows(table, std::get<0>(order.narrow(0, begin, size).sort()));
  };
  return {.train = part(held_out, table.size() - held_out), .val = part(0, held_out)};
}

Table read_validation(const std::string& path, const Table& train) {
  const TableFile file("--val-file", path);
  Table val = file.read();
  if (val.has_labels() != train.has_labels())
    file.fail(std::string("'targets' are ") + (val.has_labels() ? "integers" : "floating-point numbers") +
              ", those of --data-file are not; use the same type");
  const auto of_sample = [](const at::Tensor& tensor) { return tensor.sizes().slice(1); };
  if (of_sample(val.inputs) != of_sample(train.inputs))
    file.fail("'inputs' has sizes " + sizes_of(val.inputs) + ", those of --data-file has " + sizes_of(train.inputs) +
              "; they may differ in the number of samples only");
  if (!val.has_labels() && val.outputs != train.outputs)
    file.fail("'targets' has " + counted(val.outputs, "number") + " a sample, --data-file has " +
              std::to_string(train.outputs));
  if (val.has_labels() && val.outputs > train.outputs)
    file.fail("'targets' has the label " + std::to_string(val.outputs - 1) +
              ", which --data-file has not: its are 0 to " + std::to_string(train.outputs - 1));
  val.outputs = train.outputs;
  return val;
}

std::string describe(const Tables& tables) {
  Fingerprint fingerprint;
  for (const Table* table : {&tables.train, &tables.val})
    for (const at::Tensor& tensor : {table->inputs, table->targets}) {
      const at::Tensor whole = tensor.contiguous();
      fingerprint.add({static_cast<const char*>(whole.const_data_ptr()), whole.nbytes()});
    }
  return std::to_string(tables.train.size()) + " samples to train on and " + std::to_string(tables.val.size()) +
         " to judge by (fingerprint " + fingerprint.text() + ")";
}

}  // namespace

Tables read_tables(const Options& options) {
  const DataOptions& data = options.data;
  const TableFile file("--data-file", data.file);
  const Table table = file.read();
  if (table.has_labels() && table.outputs < 2)
    file.fail(
        "'targets' are all 0, which is one class only; use integers from 0 for two classes or more, or "
        "floating-point numbers");
  Tables tables = data.val_file.empty() ? split(table, file, data.held_out_share(), options.launch.seed)
                                        : Tables{.train = table, .val = read_validation(data.val_file, table)};
  const bool may_go_on = !options.launch.checkpoints.directory.empty() || !options.resume.empty();
  if (may_go_on) tables.data = describe(tables);  // a pass over all numbers
  if (data.limit && *data.limit < tables.train.size())
    tables.train = rows(tables.train, at::arange(*data.limit, at::kLong));
  return tables;
}

}  // namespace train
