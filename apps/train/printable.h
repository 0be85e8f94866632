#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace train {

/// `bytes` as text for a terminal or a log: valid UTF-8 as it is, and \x1b and the like for bytes of anything else and
/// for control characters but tab and newline.
std::string printable(std::string_view bytes);

/// "1 step", "2 steps"; "2 classes" by `ending`.
inline std::string counted(std::int64_t count, const std::string& what, const char* ending = "s") {
  return std::to_string(count) + " " + what + (count == 1 ? "" : ending);
}

/// A few names of many, for people: 'a', 'b' and 7 more.
class FewNames {
 public:
  void add(const std::string& name) {
    constexpr int kShown = 10;
    if (++count_ <= kShown)
      text_ += (count_ > 1 ? ", '" : "'") + name + "'";
    else
      more_ = " and " + std::to_string(count_ - kShown) + " more";
  }

  std::int64_t count() const { return count_; }
  std::string text() const { return count_ == 0 ? "none" : text_ + more_; }

 private:
  std::int64_t count_ = 0;
  std::string text_, more_;
};

}  // namespace train
