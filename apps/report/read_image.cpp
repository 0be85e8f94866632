#include "read_image.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <string_view>
#include <system_error>

namespace tandem_report {
namespace {

namespace fs = std::filesystem;

constexpr std::uintmax_t kLargest = 1'000'000;  // bytes
constexpr std::string_view kSignature("\x89PNG\r\n\x1a\n", 8);

bool lies_in(const fs::path& directory, const fs::path& file) {
  return std::mismatch(directory.begin(), directory.end(), file.begin(), file.end()).first == directory.end();
}

}  // namespace

ImageFile read_image(const fs::path& directory, const std::string& name) {
  const fs::path relative(name);
  const bool leads_up = std::find(relative.begin(), relative.end(), "..") != relative.end();
  if (name.empty() || relative.is_absolute() || leads_up) return {"", "has no path inside the run's directory"};
  std::error_code error;
  const fs::path home = fs::canonical(directory, error), file = fs::canonical(directory / relative, error);
  if (error) return {"", "cannot be found"};
  if (!lies_in(home, file)) return {"", "has no path inside the run's directory"};
  if (!fs::is_regular_file(file, error)) return {"", "is no file"};
  if (fs::file_size(file, error) > kLargest || error) return {"", "is larger than 1 MB"};
  std::ifstream stream(file, std::ios::binary);
  std::string png(std::istreambuf_iterator<char>(stream), {});
  if (!stream.good() && !stream.eof()) return {"", "cannot be read"};
  if (!png.starts_with(kSignature)) return {"", "is no PNG file"};
  return {std::move(png), ""};
}

}  // namespace tandem_report
