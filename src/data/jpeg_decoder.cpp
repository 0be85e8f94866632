#include <csetjmp>
#include <cstdio>

#include <jerror.h>
#include <jpeglib.h>

#include <ATen/Functions.h>

#include "image_decoder.h"
#include "tandem/core/error.h"

namespace tandem::data {
namespace {

// libjpeg reports an error by a function that must not return. An exception must not pass through its C frames, so that
// function jumps back into `run`, which throws.
class JpegReader {
 public:
  JpegReader(const std::string& path, const std::vector<std::uint8_t>& bytes) : path_(path) {
    info_.object.err = jpeg_std_error(&errors_.base);
    errors_.base.error_exit = [](j_common_ptr info) { fail(info); };
    errors_.base.emit_message = [](j_common_ptr info, int level) {
      if (level < 0 && !is_harmless(info->err->msg_code)) fail(info);
    };
    run([&] {
      jpeg_create_decompress(&info_.object);
      jpeg_mem_src(&info_.object, bytes.data(), bytes.size());
      jpeg_read_header(&info_.object, TRUE);
    });
  }

  jpeg_decompress_struct& info() { return info_.object; }

  // Calls `steps`, which may call libjpeg and must not own anything: a jump out of it runs no destructor.
  template <class Steps>
  void run(Steps steps) {
    if (setjmp(errors_.jump) == 0)
      steps();
    else
      throw DataError(path_ + ": is a damaged JPEG file, or one of a kind that cannot be read (" + errors_.message +
                      ")");
  }

 private:
  struct Errors {
    jpeg_error_mgr base;  // first, so that libjpeg's pointer to it is one to all
    std::jmp_buf jump;
    char message[JMSG_LENGTH_MAX];
  };
  struct Info {
    jpeg_decompress_struct object{};
    ~Info() { jpeg_destroy_decompress(&object); }
  };

  [[noreturn]] static void fail(j_common_ptr info) {
    auto* errors = reinterpret_cast<Errors*>(info->err);
    info->err->format_message(info, errors->message);
    std::longjmp(errors->jump, 1);
  }

  // Oddities beside the picture, which many files in use have. All other warnings mean that pixels are missing or
  // wrong.
  static bool is_harmless(int message) {
    return message == JWRN_EXTRANEOUS_DATA || message == JWRN_ADOBE_XFORM || message == JWRN_JFIF_MAJOR;
  }

  const std::string& path_;
  Errors errors_;
  Info info_;
};

void choose_scale(jpeg_decompress_struct& info, std::int64_t least_side) {
  info.scale_num = 1;
  info.scale_denom = 1;
  const std::int64_t shorter = std::min(info.image_height, info.image_width);
  while (least_side > 0 && info.scale_denom < 8 && shorter >= least_side * info.scale_denom * 2) info.scale_denom *= 2;
}

void choose_colors(jpeg_decompress_struct& info, int channels) {
  if (info.jpeg_color_space == JCS_CMYK || info.jpeg_color_space == JCS_YCCK)
    info.out_color_space = JCS_CMYK;
  else
    info.out_color_space = channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
}

// Cyan, magenta, yellow, black [H, W, 4] to red, green, blue. Adobe's files hold the inks inverted.
at::Tensor rgb_of_cmyk(const at::Tensor& inks, bool inverted) {
  at::Tensor rgb = at::empty({inks.size(0), inks.size(1), 3}, at::kByte);
  const std::uint8_t* from = inks.const_data_ptr<std::uint8_t>();
  std::uint8_t* to = rgb.mutable_data_ptr<std::uint8_t>();
  const int flip = inverted ? 0 : 255;
  for (std::int64_t left = rgb.numel() / 3; left > 0; --left, from += 4)
    for (int color = 0; color < 3; ++color)
      *to++ = static_cast<std::uint8_t>(((from[color] ^ flip) * (from[3] ^ flip) + 127) / 255);
  return rgb;
}

}  // namespace

DecodedImage decode_jpeg(const std::string& path, const std::vector<std::uint8_t>& bytes, DecodeRequest request) {
  JpegReader reader(path, bytes);
  jpeg_decompress_struct& info = reader.info();
  check_image_size(path, info.image_height, info.image_width);
  choose_scale(info, request.least_side);
  choose_colors(info, request.channels);
  reader.run([&] { jpeg_start_decompress(&info); });
  DecodedImage image{.pixels = at::empty({info.output_height, info.output_width, info.output_components}, at::kByte),
                     .height = info.image_height,
                     .width = info.image_width};
  JSAMPROW begin = image.pixels.mutable_data_ptr<std::uint8_t>();
  const auto stride = static_cast<std::size_t>(info.output_width) * static_cast<std::size_t>(info.output_components);
  reader.run([&] {
    while (info.output_scanline < info.output_height) {
      JSAMPROW row = begin + info.output_scanline * stride;
      jpeg_read_scanlines(&info, &row, 1);
    }
    jpeg_finish_decompress(&info);
  });
  if (info.out_color_space == JCS_CMYK) {
    image.pixels = rgb_of_cmyk(image.pixels, info.saw_Adobe_marker);
    if (request.channels == 1) image.pixels = grey_of(image.pixels);
  }
  return image;
}

}  // namespace tandem::data
