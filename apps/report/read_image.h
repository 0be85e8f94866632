#pragma once

#include <filesystem>
#include <string>

namespace tandem_report {

struct ImageFile {
  std::string png;      ///< the file's bytes
  std::string problem;  ///< what is wrong with the file, as the end of a sentence; "" when nothing is
};

/// Reads a PNG file of at most 1 MB that lies in `directory`, also after symbolic links have been followed.
ImageFile read_image(const std::filesystem::path& directory, const std::string& name);

}  // namespace tandem_report
