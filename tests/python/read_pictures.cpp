// Reads each picture of an ImageFolder twice, for pictures_test.py: read_pictures FOLDER OUTPUT [exif]. Prints a line a
// picture, its name and "read", or why not, and one a warning; the pixels, rows of red, green and blue, go to
// OUTPUT/NAME.
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "tandem/core/error.h"
#include "tandem/data/image_folder.h"

int main(int argc, char** argv) {
  using namespace tandem;
  if (argc < 3) return 2;
  data::ImageFolder folder(
      argv[1],
      {.exif_orientation = argc == 4, .values = data::ImageValues::bytes, .on_warning = [](const std::string& text) {
         const std::string path = text.substr(0, text.find(": "));
         std::printf("%s\twarning\t%s\n", path.substr(path.rfind('/') + 1).c_str(), text.c_str());
       }});
  for (std::size_t i = 0; i < *folder.size(); ++i) {
    const std::string name = std::filesystem::path(folder.path(i)).filename();
    try {
      folder.get(i);
      const at::Tensor pixels = folder.get(i).data.permute({1, 2, 0}).contiguous();
      std::ofstream(std::string(argv[2]) + "/" + name, std::ios::binary)
          .write(static_cast<const char*>(pixels.const_data_ptr()), static_cast<std::streamsize>(pixels.nbytes()));
      std::printf("%s\tread\n", name.c_str());
    } catch (const DataError& error) {
      std::printf("%s\terror\t%s\n", name.c_str(), error.what());
    }
  }
  return 0;
}
