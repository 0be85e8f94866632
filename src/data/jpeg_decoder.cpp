#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <string_view>

#include <jerror.h>
#include <jpeglib.h>

#include <ATen/Functions.h>

#include "exif_orientation.h"
#include "image_decoder.h"
#include "tandem/core/error.h"

namespace tandem::data {
namespace {

// libjpeg reports an error by a function that must not return. An exception must not pass through its C frames, so that
// function jumps back into `succeeds`, which returns false.
class JpegReader {
 public:
  JpegReader(const std::string& path, const std::vector<std::uint8_t>& bytes, bool with_exif) : path_(path) {
    info_.object.err = jpeg_std_error(&errors_.base);
    errors_.base.error_exit = [](j_common_ptr info) { fail(info); };
    errors_.base.emit_message = [](j_common_ptr info, int level) {
      if (level < 0) warn(info);
    };
    run([&] {
      jpeg_create_decompress(&info_.object);
      jpeg_mem_src(&info_.object, bytes.data(), bytes.size());
      if (with_exif) jpeg_save_markers(&info_.object, JPEG_APP0 + 1, 0xffff);
      jpeg_read_header(&info_.object, TRUE);
    });
  }

  jpeg_decompress_struct& info() { return info_.object; }

  // Calls `steps`, which may call libjpeg and must not own anything: a jump out of it runs no destructor. False when
  // libjpeg had an error.
  template <class Steps>
  bool succeeds(Steps steps) {
    if (setjmp(errors_.jump) != 0) return false;
    steps();
    return true;
  }

  template <class Steps>
  void run(Steps steps) {
    if (!succeeds(steps)) throw_damaged();
  }

  [[noreturn]] void throw_damaged() const {
    throw DataError(path_ + ": is a damaged JPEG file, or one of a kind that cannot be read (" + errors_.message + ")");
  }

  bool end_is_missing() const { return errors_.end_is_missing; }
  const char* message() const { return errors_.message; }

 private:
  struct Errors {
    jpeg_error_mgr base;  // first, so that libjpeg's pointer to it is one to all
    std::jmp_buf jump;
    char message[JMSG_LENGTH_MAX];
    bool end_is_missing = false;
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

  // Of what libjpeg bears, that which means wrong or missing pixels is an error here. What it does not name: data that
  // end early (JWRN_HIT_MARKER), Huffman and arithmetic codes that are none, restart markers that are lost.
  static void warn(j_common_ptr info) {
    auto* errors = reinterpret_cast<Errors*>(info->err);
    switch (errors->base.msg_code) {
      case JWRN_EXTRANEOUS_DATA:  // bytes between segments
      case JWRN_ADOBE_XFORM:      // taken for what the number of components says
      case JWRN_JFIF_MAJOR:
      case JWRN_BOGUS_ICC:
      case JWRN_NOT_SEQUENTIAL:  // bytes that only progressive files use
        return;
      case JWRN_BOGUS_PROGRESSION:
        if (has_what_it_refines(reinterpret_cast<j_decompress_ptr>(info))) return;
        break;
      case JWRN_JPEG_EOF:  // data that were needed are missed by themselves
        errors->end_is_missing = true;
        info->err->format_message(info, errors->message);
        return;
      default: break;
    }
    fail(info);
  }

  // A scan in an unusual place gives its coefficients all the same, unless it adds bits to others.
  static bool has_what_it_refines(j_decompress_ptr info) {
    const bool before_the_mean = info->Ss > 0 && info->err->msg_parm.i[1] == 0;
    return before_the_mean || info->Ah == 0;
  }

  const std::string& path_;
  Errors errors_;
  Info info_;
};

// Whether a file that ended without saying so had all its scans. To be asked before jpeg_finish_decompress.
bool has_all_scans(const jpeg_decompress_struct& info) {
  if (info.arith_code) return false;  // what is missing of its data looks like zeros
  for (int component = 0; component < info.num_components; ++component) {
    if (!info.comp_info[component].quant_table) return false;  // no scan of it has begun
    const auto has_bits_left = [](int bits) { return bits != 0; };
    if (info.progressive_mode &&
        std::any_of(info.coef_bits[component], info.coef_bits[component] + DCTSIZE2, has_bits_left))
      return false;
  }
  return true;
}

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

// 1 where no EXIF block was kept.
int orientation_of(const jpeg_decompress_struct& info) {
  for (const jpeg_marker_struct* marker = info.marker_list; marker; marker = marker->next) {
    const std::string_view data(reinterpret_cast<const char*>(marker->data), marker->data_length);
    if (data.starts_with(std::string_view("Exif\0", 5))) return exif_orientation({marker->data, marker->data_length});
  }
  return 1;
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
  JpegReader reader(path, bytes, request.orientation);
  jpeg_decompress_struct& info = reader.info();
  check_image_size(path, info.image_height, info.image_width);
  choose_scale(info, request.least_side);
  choose_colors(info, request.channels);
  reader.run([&] { jpeg_start_decompress(&info); });
  DecodedImage image{.pixels = at::empty({info.output_height, info.output_width, info.output_components}, at::kByte),
                     .height = info.image_height,
                     .width = info.image_width,
                     .orientation = orientation_of(info)};
  JSAMPROW begin = image.pixels.mutable_data_ptr<std::uint8_t>();
  const auto stride = static_cast<std::size_t>(info.output_width) * static_cast<std::size_t>(info.output_components);
  reader.run([&] {
    while (info.output_scanline < info.output_height) {
      JSAMPROW row = begin + info.output_scanline * stride;
      jpeg_read_scanlines(&info, &row, 1);
    }
  });
  const bool all_scans = has_all_scans(info);
  const bool ends_well = reader.succeeds([&] { jpeg_finish_decompress(&info); });
  if (reader.end_is_missing() && !all_scans) reader.throw_damaged();
  if (!ends_well || reader.end_is_missing()) image.oddity = reader.message();
  if (info.out_color_space == JCS_CMYK) {
    image.pixels = rgb_of_cmyk(image.pixels, info.saw_Adobe_marker);
    if (request.channels == 1) image.pixels = grey_of(image.pixels);
  }
  return image;
}

}  // namespace tandem::data
