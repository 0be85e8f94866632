#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <jpeglib.h>
#include <png.h>

namespace tandem::test {

/// A picture as it goes into a file: rows from the top, pixels from the left, `channels` samples a pixel.
struct Raster {
  int height, width, channels;
  std::vector<std::uint8_t> bytes;

  /// `value(y, x, channel)` for each sample.
  template <class Value>
  static Raster of(int height, int width, int channels, Value value) {
    Raster raster{height, width, channels, {}};
    for (int y = 0; y < height; ++y)
      for (int x = 0; x < width; ++x)
        for (int c = 0; c < channels; ++c) raster.bytes.push_back(static_cast<std::uint8_t>(value(y, x, c)));
    return raster;
  }
};

using OpenFile = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;

inline OpenFile open_for_writing(const std::string& path) {
  OpenFile file(std::fopen(path.c_str(), "wb"), std::fclose);
  if (!file) throw std::runtime_error("cannot write " + path);
  return file;
}

struct PngOptions {
  int color_type = PNG_COLOR_TYPE_RGB;
  int bit_depth = 8;                    ///< the raster has the packed bytes of a row when it is not 8
  std::vector<png_color> palette = {};  ///< of PNG_COLOR_TYPE_PALETTE
  bool transparent_first = false;       ///< the palette's first color is transparent (a tRNS chunk)
  bool interlaced = false;
};

inline void write_png(const std::string& path, const Raster& raster, const PngOptions& options = {}) {
  const OpenFile file = open_for_writing(path);
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, nullptr, nullptr, nullptr);
  png_infop info = png_create_info_struct(png);
  png_init_io(png, file.get());
  png_set_IHDR(png, info, static_cast<png_uint_32>(raster.width), static_cast<png_uint_32>(raster.height),
               options.bit_depth, options.color_type, options.interlaced ? PNG_INTERLACE_ADAM7 : PNG_INTERLACE_NONE,
               PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  if (!options.palette.empty())
    png_set_PLTE(png, info, options.palette.data(), static_cast<int>(options.palette.size()));
  const png_byte opaque_none = 0;
  if (options.transparent_first) png_set_tRNS(png, info, &opaque_none, 1, nullptr);
  const std::size_t stride = raster.bytes.size() / static_cast<std::size_t>(raster.height);
  std::vector<png_bytep> rows;
  for (std::size_t y = 0; y < static_cast<std::size_t>(raster.height); ++y)
    rows.push_back(const_cast<png_bytep>(raster.bytes.data() + y * stride));
  png_set_rows(png, info, rows.data());
  png_write_png(png, info, PNG_TRANSFORM_IDENTITY, nullptr);
  png_destroy_write_struct(&png, &info);
}

struct JpegOptions {
  J_COLOR_SPACE raster_colors = JCS_RGB;  ///< what the raster's channels are
  J_COLOR_SPACE file_colors = JCS_YCbCr;
  bool progressive = false;
  bool separate_scans = false;    ///< one for each component
  unsigned restart_interval = 0;  ///< blocks between two restart markers; 0: there are none
  bool arithmetic = false;        ///< coded so, and not by Huffman's method
};

/// At quality 95 and without subsampling: smooth pictures come back within a few units.
inline void write_jpeg(const std::string& path, const Raster& raster, const JpegOptions& options = {}) {
  const OpenFile file = open_for_writing(path);
  jpeg_compress_struct jpeg{};
  jpeg_error_mgr errors;
  jpeg.err = jpeg_std_error(&errors);
  jpeg_create_compress(&jpeg);
  jpeg_stdio_dest(&jpeg, file.get());
  jpeg.image_height = static_cast<JDIMENSION>(raster.height);
  jpeg.image_width = static_cast<JDIMENSION>(raster.width);
  jpeg.input_components = raster.channels;
  jpeg.in_color_space = options.raster_colors;
  jpeg_set_defaults(&jpeg);
  jpeg_set_colorspace(&jpeg, options.file_colors);
  jpeg_set_quality(&jpeg, 95, TRUE);
  jpeg.comp_info[0].h_samp_factor = jpeg.comp_info[0].v_samp_factor = 1;
  if (options.file_colors == JCS_YCCK) jpeg.comp_info[3].h_samp_factor = jpeg.comp_info[3].v_samp_factor = 1;
  if (options.progressive) jpeg_simple_progression(&jpeg);
  std::vector<jpeg_scan_info> scans;
  for (int component = 0; component < jpeg.num_components; ++component)
    scans.push_back({.comps_in_scan = 1, .component_index = {component}, .Ss = 0, .Se = 63, .Ah = 0, .Al = 0});
  if (options.separate_scans) {
    jpeg.scan_info = scans.data();
    jpeg.num_scans = static_cast<int>(scans.size());
  }
  jpeg.restart_interval = options.restart_interval;
  jpeg.arith_code = options.arithmetic;
  jpeg_start_compress(&jpeg, TRUE);
  const std::size_t stride = static_cast<std::size_t>(raster.width) * static_cast<std::size_t>(raster.channels);
  while (jpeg.next_scanline < jpeg.image_height) {
    JSAMPROW row = const_cast<JSAMPROW>(raster.bytes.data() + jpeg.next_scanline * stride);
    jpeg_write_scanlines(&jpeg, &row, 1);
  }
  jpeg_finish_compress(&jpeg);
  jpeg_destroy_compress(&jpeg);
}

}  // namespace tandem::test
