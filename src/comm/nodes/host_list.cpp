// Slurm's lists of hosts.
#include <algorithm>
#include <charconv>

#include "tandem/comm/nodes.h"
#include "tandem/core/error.h"

namespace tandem {
namespace {

constexpr std::size_t kMostHosts = 65'536;
constexpr std::size_t kLongestHost = 253;  // as DNS has it

// Reads a list from its beginning to its end.
class HostList {
 public:
  explicit HostList(std::string_view list) : list_(list), rest_(list) {}

  std::vector<std::string> read() {
    std::vector<std::string> hosts;
    do {
      for (std::string& host : read_item()) hosts.push_back(std::move(host));
      if (hosts.size() > kMostHosts) fail("it has more than 65,536 hosts");
    } while (take(','));
    if (!rest_.empty()) fail("'" + std::string(1, rest_[0]) + "' is out of place");
    return hosts;
  }

 private:
  // All hosts of one item, such as "rack[1-2]n[01-03]".
  std::vector<std::string> read_item() {
    std::vector<std::string> hosts{""};
    bool empty = true;
    while (!rest_.empty() && rest_[0] != ',') {
      hosts = take('[') ? combined(hosts, read_brackets()) : combined(hosts, {read_text()});
      empty = false;
    }
    if (empty) fail("a name is empty");
    return hosts;
  }

  std::string read_text() {
    const auto fits = [](char c) {
      return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || c == '.' ||
             c == '_';
    };
    const auto length = static_cast<std::size_t>(std::find_if_not(rest_.begin(), rest_.end(), fits) - rest_.begin());
    if (length == 0) fail("a name has a character that is out of place");
    std::string text(rest_.substr(0, length));
    rest_.remove_prefix(length);
    return text;
  }

  std::vector<std::string> read_brackets() {
    std::vector<std::string> numbers;
    do {
      const std::string_view first = read_digits();
      const std::string_view last = take('-') ? read_digits() : first;
      add_range(numbers, first, last);
    } while (take(','));
    if (!take(']')) fail("a ']' is missing");
    return numbers;
  }

  std::string_view read_digits() {
    const auto length = std::min(rest_.find_first_not_of("0123456789"), rest_.size());
    if (length == 0) fail("a number is missing");
    const std::string_view digits = rest_.substr(0, length);
    rest_.remove_prefix(length);
    return digits;
  }

  // As many digits as the first number has at least: 08 to 11 are 08, 09, 10, 11.
  void add_range(std::vector<std::string>& numbers, std::string_view first, std::string_view last) {
    const unsigned long begin = number(first), end = number(last);
    if (end < begin) fail("a range ends before it begins");
    if (end - begin >= kMostHosts - std::min(numbers.size(), kMostHosts)) fail("it has more than 65,536 hosts");
    for (unsigned long value = begin; value <= end; ++value) {
      std::string digits = std::to_string(value);
      if (digits.size() < first.size()) digits.insert(0, first.size() - digits.size(), '0');
      numbers.push_back(std::move(digits));
    }
  }

  unsigned long number(std::string_view digits) {
    unsigned long value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (error != std::errc() || digits.size() > 12) fail("a number is too large");
    return value;
  }

  std::vector<std::string> combined(const std::vector<std::string>& heads, const std::vector<std::string>& tails) {
    if (heads.size() * tails.size() > kMostHosts) fail("it has more than 65,536 hosts");
    std::vector<std::string> hosts;
    for (const std::string& head : heads)
      for (const std::string& tail : tails) {
        hosts.push_back(head + tail);
        if (hosts.back().size() > kLongestHost) fail("a name is too long");
      }
    return hosts;
  }

  bool take(char c) {
    if (rest_.empty() || rest_[0] != c) return false;
    rest_.remove_prefix(1);
    return true;
  }

  [[noreturn]] void fail(const std::string& what) const {
    throw ConfigError("'" + std::string(list_.substr(0, 200)) + "' is no list of hosts such as n[1-2,05],m3: " + what);
  }

  std::string_view list_, rest_;
};

}  // namespace

std::vector<std::string> hosts_of(std::string_view list) { return HostList(list).read(); }

}  // namespace tandem
