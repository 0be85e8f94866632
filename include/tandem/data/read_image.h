#pragma once

#include <string>
#include <vector>

#include "tandem/data/image_folder.h"

namespace tandem::data {

/// One picture as a sample of an ImageFolder with these options has it, without its label: as a trained network is
/// asked about it. `on_bad` is of no use here; `on_warning` hears of an odd file each time. Throws DataError and
/// ConfigError as ImageFolder does. Any number of threads may call it at once.
at::Tensor read_image(const std::string& file, const ImageFolderOptions& options = {});

/// The pictures of a folder and of those below it, which ImageFolder's rules tell from other files, sorted by folder
/// and name. Throws DataError naming the folder when it cannot be listed or has none, and the link that leads back to a
/// folder that it is in, or nowhere.
std::vector<std::string> list_images(const std::string& directory);

}  // namespace tandem::data
