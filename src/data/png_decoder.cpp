#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstring>

#include <png.h>

#include <ATen/Functions.h>

#include "image_decoder.h"
#include "tandem/core/error.h"

namespace tandem::data {
namespace {

// libpng reports an error by a function that must not return. An exception must not pass through its C frames, so that
// function jumps back into `run`, which throws.
class PngReader {
 public:
  PngReader(const std::string& path, const std::vector<std::uint8_t>& bytes)
      : path_(path), next_(bytes.data()), left_(bytes.size()) {
    handles_.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, fail, [](png_structp, png_const_charp) {});
    if (handles_.png) handles_.info = png_create_info_struct(handles_.png);
    if (!handles_.info) throw DataError(path + ": libpng cannot begin to read it");
    run([&] {
      png_set_read_fn(handles_.png, this, read);
      png_read_info(handles_.png, handles_.info);
    });
  }
  PngReader(const PngReader&) = delete;
  PngReader& operator=(const PngReader&) = delete;

  png_structp png() { return handles_.png; }
  png_infop info() { return handles_.info; }

  // Calls `steps`, which may call libpng and must not own anything: a jump out of it runs no destructor.
  template <class Steps>
  void run(Steps steps) {
    if (setjmp(jump_) == 0)
      steps();
    else
      throw DataError(path_ + ": is a damaged PNG file (" + message_ + ")");
  }

 private:
  struct Handles {
    png_structp png = nullptr;
    png_infop info = nullptr;
    ~Handles() { png_destroy_read_struct(&png, &info, nullptr); }
  };

  [[noreturn]] static void fail(png_structp png, png_const_charp message) {
    auto* self = static_cast<PngReader*>(png_get_error_ptr(png));
    std::snprintf(self->message_, sizeof self->message_, "%s", message);
    std::longjmp(self->jump_, 1);
  }

  static void read(png_structp png, png_bytep to, std::size_t size) {
    auto* self = static_cast<PngReader*>(png_get_io_ptr(png));
    if (size > self->left_) png_error(png, "it is cut off");
    std::memcpy(to, self->next_, size);
    self->next_ += size;
    self->left_ -= size;
  }

  const std::string& path_;
  const std::uint8_t* next_;
  std::size_t left_;
  std::jmp_buf jump_;
  char message_[128];
  Handles handles_;
};

// Whatever the file has, the rows shall be bytes of red, green and blue, or of grey where the file has only grey. Alpha
// is left out and a gamma not applied: the numbers of the file, as Pillow gives them.
void choose_transforms(png_structp png, png_infop info, int channels) {
  png_set_expand(png);
  png_set_scale_16(png);
  png_set_strip_alpha(png);
  if (channels == 3) png_set_gray_to_rgb(png);
  png_set_interlace_handling(png);
  png_read_update_info(png, info);
}

}  // namespace

DecodedImage decode_png(const std::string& path, const std::vector<std::uint8_t>& bytes, DecodeRequest request) {
  PngReader reader(path, bytes);
  DecodedImage image{.pixels = {},
                     .height = png_get_image_height(reader.png(), reader.info()),
                     .width = png_get_image_width(reader.png(), reader.info())};
  check_image_size(path, image.height, image.width);
  reader.run([&] { choose_transforms(reader.png(), reader.info(), request.channels); });
  const int channels = png_get_channels(reader.png(), reader.info());
  image.pixels = at::empty({image.height, image.width, channels}, at::kByte);
  std::vector<png_bytep> rows(static_cast<std::size_t>(image.height));
  png_bytep row = image.pixels.mutable_data_ptr<std::uint8_t>();
  for (png_bytep& pointer : rows) {
    pointer = row;
    row += image.width * channels;
  }
  reader.run([&] {
    png_read_image(reader.png(), rows.data());
    png_read_end(reader.png(), nullptr);
  });
  if (request.channels < channels) image.pixels = grey_of(image.pixels);
  return image;
}

}  // namespace tandem::data
