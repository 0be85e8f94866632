#include "report.h"

#include <cerrno>
#include <fstream>
#include <system_error>

#include "page.h"
#include "read_run.h"

namespace tandem_report {
namespace {

void write_whole(const std::filesystem::path& path, const std::string& text) {
  auto partial = path;
  partial += ".partial";
  std::ofstream file(partial, std::ios::binary);
  file.write(text.data(), static_cast<std::streamsize>(text.size()));
  file.close();
  std::error_code error;
  if (file.fail()) {
    error = std::error_code(errno, std::generic_category());
    std::error_code ignored;
    std::filesystem::remove(partial, ignored);
  } else {
    std::filesystem::rename(partial, path, error);
  }
  if (error) throw std::system_error(error, "cannot write " + path.string());
}

}  // namespace

void write_report(const std::vector<std::filesystem::path>& directories, const std::filesystem::path& output) {
  std::vector<Run> runs;
  for (const auto& directory : directories) runs.push_back(read_run(directory));
  write_whole(output, page(page_data(runs)));
}

}  // namespace tandem_report
