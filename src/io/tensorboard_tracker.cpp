// Field numbers are those of TensorFlow's event.proto, summary.proto and tensor.proto, and of TensorBoard's
// plugins/hparams/plugin_data.proto and plugins/text.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <optional>

#include "io/append_file.h"
#include "io/json_text.h"
#include "io/proto_writer.h"
#include "io/tf_record.h"
#include "tandem/io/file_trackers.h"

namespace tandem::io {
namespace {

constexpr int kDataString = 7, kDataFloat = 1;  // DataType

// SummaryMetadata, which names the page that shows a value.
ProtoWriter metadata(std::string_view plugin, std::string_view content = {}) {
  ProtoWriter data, metadata;
  data.text(1, plugin);
  if (!content.empty()) data.text(2, content);
  metadata.message(1, data);
  return metadata;
}

// TensorProto of texts [1].
ProtoWriter text_tensor(std::string_view text) {
  ProtoWriter dim, shape, tensor;
  dim.integer(1, 1);
  shape.message(2, dim);
  tensor.integer(1, kDataString);
  tensor.message(2, shape);
  tensor.text(8, text);
  return tensor;
}

// TensorProto [N + 2] of an images summary: width, height, and N PNG files of this size.
ProtoWriter images_tensor(std::span<const Image> images) {
  ProtoWriter dim, shape, tensor;
  dim.integer(1, static_cast<std::int64_t>(images.size()) + 2);
  shape.message(2, dim);
  tensor.integer(1, kDataString);
  tensor.message(2, shape);
  tensor.text(8, std::to_string(images.front().width));
  tensor.text(8, std::to_string(images.front().height));
  for (const Image& image : images) tensor.text(8, image.png);
  return tensor;
}

// HistogramProto, whose buckets are told by their upper ends.
ProtoWriter histogram_proto(const Histogram& histogram) {
  ProtoWriter proto;
  proto.number(1, histogram.min);
  proto.number(2, histogram.max);
  proto.number(3, static_cast<double>(histogram.count));
  proto.number(4, histogram.sum);
  proto.number(5, histogram.sum_squares);
  proto.numbers(6, std::span(histogram.edges).subspan(1));
  proto.numbers(7, histogram.counts);
  return proto;
}

// google.protobuf.Value
ProtoWriter value_proto(const ConfigValue& value) {
  ProtoWriter proto;
  if (const auto* flag = std::get_if<bool>(&value)) proto.integer(4, *flag ? 1 : 0);
  if (const auto* integer = std::get_if<std::int64_t>(&value)) proto.number(2, static_cast<double>(*integer));
  if (const auto* number = std::get_if<double>(&value)) proto.number(2, *number);
  if (const auto* text = std::get_if<std::string>(&value)) proto.text(3, as_utf8(*text));
  return proto;
}

// HParamsPluginData with a SessionStartInfo.
std::string session_start(const Run& run, double time) {
  ProtoWriter start, data;
  for (const auto& [name, value] : run.config) {
    ProtoWriter entry;
    entry.text(1, as_utf8(name));
    entry.message(2, value_proto(value));
    start.message(1, entry);
  }
  start.number(5, time);
  data.message(3, start);
  return data.bytes();
}

// Ends a run with a SessionEndInfo.
std::string session_end(RunStatus status, double time) {
  constexpr int kSuccess = 1, kFailure = 2;
  ProtoWriter end, data;
  end.integer(1, status == RunStatus::finished ? kSuccess : kFailure);
  end.number(2, time);
  data.message(4, end);
  return data.bytes();
}

std::string number_text(double value) {
  std::array<char, 32> digits;
  return {digits.data(), std::to_chars(digits.data(), digits.data() + digits.size(), value).ptr};
}

void append_cell(std::string& line, std::string_view text) {
  for (const char c : text) {
    if (c == '|') line += '\\';
    line += c;
  }
  line += " | ";
}

// A table in Markdown, which is what TensorBoard takes texts for.
std::string table_of(const Matrix& matrix) {
  std::string text = "| | ", rule = "|---|";
  for (const std::string& label : matrix.labels) {
    append_cell(text, label);
    rule += "---|";
  }
  text += '\n';
  text += rule;
  for (std::size_t row = 0; row < matrix.labels.size(); ++row) {
    text += "\n| ";
    append_cell(text, matrix.labels[row]);
    for (const double value : matrix.values[row]) append_cell(text, number_text(value));
  }
  return text;
}

std::string file_name(double time) {
  static std::atomic<int> files{0};  // a process may begin several runs a second
  std::array<char, 256> host{};
  ::gethostname(host.data(), host.size() - 1);
  return "events.out.tfevents." + std::to_string(static_cast<std::int64_t>(time)) + "." + host.data() + "." +
         std::to_string(::getpid()) + "." + std::to_string(files++);
}

class TensorBoardTracker : public Tracker {
 public:
  explicit TensorBoardTracker(const std::string& directory) : directory_(directory) {}

  std::string name() const override { return "tensorboard"; }

  void begin(const Run& run, double time) override {
    make_directories(directory_);
    file_.emplace(directory_ + "/" + file_name(time));
    ProtoWriter version;
    version.number(1, time);
    version.text(3, "brain.Event:2");
    write(version);
    write_start({run.first_step, time});
    write_hparams("_hparams_/session_start_info", session_start(run, time), time);
  }

  void log(std::span<const Scalar> values, Moment when) override {
    ProtoWriter summary;
    for (const Scalar& scalar : values) {
      ProtoWriter value;
      value.text(1, as_utf8(scalar.name));
      value.number32(2, static_cast<float>(scalar.value));
      summary.message(1, value);
    }
    write_summary(summary, when);
  }

  void log_text(const std::string& name, const std::string& text, Moment when) override {
    write_tensor(name, text_tensor(as_utf8(text)), metadata("text"), when);
  }

  void log_histogram(const std::string& name, const Histogram& histogram, Moment when) override {
    if (histogram.count == 0) return;  // it has no picture of that
    ProtoWriter value, summary;
    value.text(1, as_utf8(name));
    value.message(5, histogram_proto(histogram));
    summary.message(1, value);
    write_summary(summary, when);
  }

  void log_images(const std::string& name, std::span<const Image> images, Moment when) override {
    if (images.empty()) return;
    write_tensor(name, images_tensor(images), metadata("images"), when);
    std::string captions;
    for (const Image& image : images) captions += "1. " + image.caption + "\n";
    if (captions.size() > 4 * images.size()) log_text(name + "/captions", captions, when);
  }

  void log_matrix(const std::string& name, const Matrix& matrix, Moment when) override {
    log_text(name, table_of(matrix), when);
  }

  void log_event(const std::string& name, const std::string& detail, Moment when) override {
    log_text("events/" + name, detail, when);
  }

  void end(RunStatus status, std::span<const Scalar>, double time) override {
    write_hparams("_hparams_/session_end_info", session_end(status, time), time);
  }

 private:
  void write(const ProtoWriter& event) { file_->append(tf_record(event.bytes())); }

  void write_summary(const ProtoWriter& summary, Moment when) {
    ProtoWriter event;
    event.number(1, when.time);
    event.integer(2, when.step);
    event.message(5, summary);
    write(event);
  }

  void write_tensor(const std::string& name, const ProtoWriter& tensor, const ProtoWriter& metadata, Moment when) {
    ProtoWriter value, summary;
    value.text(1, as_utf8(name));
    value.message(8, tensor);
    value.message(9, metadata);
    summary.message(1, value);
    write_summary(summary, when);
  }

  // Its value is in the metadata; the tensor, of no elements, is there because one has to be.
  void write_hparams(const std::string& name, const std::string& content, double time) {
    ProtoWriter shape, dim, tensor;
    dim.integer(1, 0);
    shape.message(2, dim);
    tensor.integer(1, kDataFloat);
    tensor.message(2, shape);
    write_tensor(name, tensor, metadata("hparams", content), {0, time});
  }

  // From the second one in a directory on, TensorBoard forgets this step and later ones of the files before.
  void write_start(Moment when) {
    constexpr int kStart = 1;
    ProtoWriter session, event;
    session.integer(1, kStart);
    event.number(1, when.time);
    event.integer(2, when.step);
    event.message(7, session);
    write(event);
  }

  const std::string directory_;
  std::optional<AppendFile> file_;
};

}  // namespace

std::unique_ptr<Tracker> tensorboard_tracker(const std::string& directory) {
  return std::make_unique<TensorBoardTracker>(directory);
}

}  // namespace tandem::io
