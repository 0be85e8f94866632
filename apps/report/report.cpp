#include "report.h"

#include "io/output_file.h"
#include "page.h"
#include "read_run.h"

namespace tandem_report {
void write_report(const std::vector<std::filesystem::path>& directories, const std::filesystem::path& output) {
  std::vector<Run> runs;
  for (const auto& directory : directories) runs.push_back(read_run(directory));
  const std::string text = page(page_data(runs));
  tandem::io::OutputFile(output).write([&](const tandem::io::WriteBytes& write) { write(text.data(), text.size()); });
}

}  // namespace tandem_report
