#include <array>
#include <charconv>
#include <optional>

#include "io/append_file.h"
#include "tandem/io/file_trackers.h"

namespace tandem::io {
namespace {

// Shortest digits that read back as `value`, whatever the locale.
template <class Number>
void append_number(std::string& text, Number value) {
  std::array<char, 32> digits;
  const auto [end, error] = std::to_chars(digits.data(), digits.data() + digits.size(), value);
  text.append(digits.data(), end);
}

// RFC 4180: quoted where a reader would take it for something else.
void append_field(std::string& text, std::string_view field) {
  if (field.find_first_of(",\"\r\n") == std::string_view::npos) {
    text += field;
    return;
  }
  text += '"';
  for (const char c : field) {
    if (c == '"') text += '"';
    text += c;
  }
  text += '"';
}

class CsvTracker : public Tracker {
 public:
  explicit CsvTracker(const std::string& directory) : directory_(directory) {}

  std::string name() const override { return "csv"; }

  void begin(const Run&, double) override {
    make_directories(directory_);
    file_.emplace(directory_ + "/scalars.csv");
    file_->remove_cut_line();
    if (file_->empty()) file_->append("step,time,name,value\n");
  }

  void log(std::span<const Scalar> values, Moment when) override {
    std::string lines;
    for (const Scalar& scalar : values) {
      append_number(lines, when.step);
      lines += ',';
      append_number(lines, when.time);
      lines += ',';
      append_field(lines, scalar.name);
      lines += ',';
      append_number(lines, scalar.value);
      lines += '\n';
    }
    file_->append(lines);
  }

 private:
  const std::string directory_;
  std::optional<AppendFile> file_;
};

}  // namespace

std::unique_ptr<Tracker> csv_tracker(const std::string& directory) { return std::make_unique<CsvTracker>(directory); }

}  // namespace tandem::io
