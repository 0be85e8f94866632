#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <string_view>

#include <png.h>

#include <ATen/Functions.h>

#include "exif_orientation.h"
#include "image_decoder.h"
#include "tandem/core/error.h"

namespace tandem::data {
namespace {

// Whether the file ends within the data of its pixels.
bool ends_in_data(const std::vector<std::uint8_t>& bytes) {
  constexpr std::size_t kSignature = 8, kHead = 8, kChecksum = 4;
  for (std::size_t at = kSignature; at + kHead <= bytes.size();) {
    const std::size_t length = png_get_uint_32(&bytes[at]);
    if (length > bytes.size() - at - kHead) return std::memcmp(&bytes[at + 4], "IDAT", 4) == 0;
    at += kHead + length + kChecksum;
  }
  return false;
}

// libpng reports an error by a function that must not return. An exception must not pass through its C frames, so that
// function jumps back into `succeeds`, which returns false.
class PngReader {
 public:
  PngReader(const std::string& path, const std::vector<std::uint8_t>& bytes)
      : path_(path), next_(bytes.data()), left_(bytes.size()) {
    handles_.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, fail, warn);
    if (handles_.png) handles_.info = png_create_info_struct(handles_.png);
    if (!handles_.info) throw DataError(path + ": libpng cannot begin to read it");
    // All that there is shall be used, and not only what fills a buffer.
    if (ends_in_data(bytes)) png_set_compression_buffer_size(handles_.png, 1);
    run([&] {
      png_set_read_fn(handles_.png, this, read);
      png_read_info(handles_.png, handles_.info);
      // Of the pixels' data: these have a checksum of their own.
      png_set_crc_action(handles_.png, PNG_CRC_WARN_USE, PNG_CRC_DEFAULT);
    });
  }
  PngReader(const PngReader&) = delete;
  PngReader& operator=(const PngReader&) = delete;

  png_structp png() { return handles_.png; }
  png_infop info() { return handles_.info; }

  // Calls `steps`, which may call libpng and must not own anything: a jump out of it runs no destructor. False when
  // libpng had an error.
  template <class Steps>
  bool succeeds(Steps steps) {
    if (setjmp(jump_) != 0) return false;
    steps();
    return true;
  }

  template <class Steps>
  void run(Steps steps) {
    if (!succeeds(steps)) throw_damaged();
  }

  [[noreturn]] void throw_damaged() const { throw DataError(path_ + ": is a damaged PNG file (" + message_ + ")"); }

  // Whatever the file has, the rows shall be bytes of red, green and blue, or of grey where the file has only grey.
  // Alpha is left out and a gamma not applied: the numbers of the file, as Pillow gives them.
  void choose_transforms(int channels) {
    png_set_expand(handles_.png);
    png_set_scale_16(handles_.png);
    png_set_strip_alpha(handles_.png);
    if (channels == 3) png_set_gray_to_rgb(handles_.png);
    png_set_interlace_handling(handles_.png);
    png_set_read_user_transform_fn(handles_.png, [](png_structp png, png_row_infop, png_bytep) {
      --static_cast<PngReader*>(png_get_io_ptr(png))->rows_left_;
    });
    rows_left_ = rows_in_file();
    png_read_update_info(handles_.png, handles_.info);
  }

  // Reads all pixels. Returns false when the file ends with them, and not as it should.
  bool read_pixels(png_bytepp rows) {
    const bool ends_well = succeeds([&] { png_read_image(handles_.png, rows); });
    if (!ends_well && (rows_left_ > 0 || !cut_off_)) throw_damaged();
    if (wrong_checksum_ || (wrong_crc_ && (checksum_unknown_ || !ends_well))) {
      std::snprintf(message_, sizeof message_, "%s", wrong_checksum_ ? "wrong checksum of its pixels" : "CRC error");
      throw_damaged();
    }
    return ends_well;
  }

  const char* message() const { return message_; }

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

  static void warn(png_structp png, png_const_charp message) {
    const std::string_view text(message);
    if (!text.starts_with("IDAT: ")) return;  // beside the pixels
    auto* self = static_cast<PngReader*>(png_get_error_ptr(png));
    if (text == "IDAT: CRC error")
      self->wrong_crc_ = true;
    else if (text == "IDAT: incorrect data check")  // zlib's words
      self->wrong_checksum_ = true;
    else
      self->checksum_unknown_ = true;
  }

  // How many rows of pixels the file has: of an interlaced one, those of all passes.
  std::int64_t rows_in_file() {
    const png_uint_32 height = png_get_image_height(handles_.png, handles_.info);
    const png_uint_32 width = png_get_image_width(handles_.png, handles_.info);
    if (png_get_interlace_type(handles_.png, handles_.info) == PNG_INTERLACE_NONE) return height;
    std::int64_t rows = 0;
    for (int pass = 0; pass < PNG_INTERLACE_ADAM7_PASSES; ++pass)
      if (PNG_PASS_COLS(width, pass) > 0) rows += PNG_PASS_ROWS(height, pass);
    return rows;
  }

  static void read(png_structp png, png_bytep to, std::size_t size) {
    auto* self = static_cast<PngReader*>(png_get_io_ptr(png));
    if (size > self->left_) {
      self->cut_off_ = true;
      png_error(png, "it is cut off");
    }
    std::memcpy(to, self->next_, size);
    self->next_ += size;
    self->left_ -= size;
  }

  const std::string& path_;
  const std::uint8_t* next_;
  std::size_t left_;
  std::int64_t rows_left_ = 0;  // that libpng has still to give
  std::jmp_buf jump_;
  char message_[128];
  bool cut_off_ = false, wrong_crc_ = false, wrong_checksum_ = false, checksum_unknown_ = false;
  Handles handles_;
};

}  // namespace

DecodedImage decode_png(const std::string& path, const std::vector<std::uint8_t>& bytes, DecodeRequest request) {
  PngReader reader(path, bytes);
  DecodedImage image{.pixels = {},
                     .height = png_get_image_height(reader.png(), reader.info()),
                     .width = png_get_image_width(reader.png(), reader.info())};
  check_image_size(path, image.height, image.width);
  reader.run([&] { reader.choose_transforms(request.channels); });
  const int channels = png_get_channels(reader.png(), reader.info());
  image.pixels = at::empty({image.height, image.width, channels}, at::kByte);
  std::vector<png_bytep> rows(static_cast<std::size_t>(image.height));
  png_bytep row = image.pixels.mutable_data_ptr<std::uint8_t>();
  for (png_bytep& pointer : rows) {
    pointer = row;
    row += image.width * channels;
  }
  const bool ends_well =
      reader.read_pixels(rows.data()) && reader.succeeds([&] { png_read_end(reader.png(), nullptr); });
  if (!ends_well) image.oddity = reader.message();
  if (request.channels < channels) image.pixels = grey_of(image.pixels);
  // It may stand after the pixels, where the file may have ended.
  if (png_bytep exif = nullptr; request.orientation) {
    png_uint_32 size = 0;
    if (png_get_eXIf_1(reader.png(), reader.info(), &size, &exif) != 0)
      image.orientation = exif_orientation({exif, size});
  }
  return image;
}

}  // namespace tandem::data
