#include "tandem/data/image_folder.h"

#include <zlib.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include <torch/types.h>

#include "support/catch.h"
#include "support/image_files.h"
#include "support/temp_dir.h"
#include "tandem/core/error.h"
#include "tandem/data/data_loader.h"
#include "tandem/data/read_image.h"

using namespace tandem;
using data::ImageFolder;
using data::ImageFolderOptions;
using data::ImageSize;
using data::ImageValues;
using tandem::test::JpegOptions;
using tandem::test::PngOptions;
using tandem::test::Raster;
using tandem::test::TempDir;
using tandem::test::write_jpeg;
using tandem::test::write_png;

namespace {

// A dataset of the one class "things".
struct OneClass {
  TempDir dir;
  OneClass() { std::filesystem::create_directory(dir / "things"); }
  std::string operator/(const std::string& name) const { return dir / ("things/" + name); }

  at::Tensor first(ImageFolderOptions options = {}) const { return ImageFolder(dir.path(), options).get(0).data; }

  at::Tensor first_bytes(ImageFolderOptions options = {}) const {
    options.values = ImageValues::bytes;
    return first(options);
  }
};

// Every sample has its own value, nearly: rows, columns and channels cannot be taken for another.
Raster distinct(int height, int width, int channels) {
  return Raster::of(height, width, channels, [](int y, int x, int c) { return y * 31 + x * 7 + c * 101; });
}

// What JPEG keeps well.
Raster smooth(int height, int width, int channels) {
  return Raster::of(height, width, channels, [=](int y, int x, int c) {
    return 20 + 200 * ((c == 0 ? y : 0) + (c > 0 ? x : 0)) / (c == 0 ? height : width) / (c == 2 ? 2 : 1);
  });
}

// The raster as a sample, [channels, height, width].
at::Tensor planes(const Raster& raster) {
  at::Tensor pixels = at::empty({raster.height, raster.width, raster.channels}, at::kByte);
  std::copy(raster.bytes.begin(), raster.bytes.end(), pixels.mutable_data_ptr<std::uint8_t>());
  return pixels.permute({2, 0, 1}).contiguous();
}

at::Tensor grey(const at::Tensor& rgb) {
  const auto weights = at::tensor({0.299, 0.587, 0.114}, at::kDouble).view({3, 1, 1});
  return (rgb.to(at::kDouble) * weights).sum(0, true).round().to(at::kByte);
}

int farthest(const at::Tensor& a, const at::Tensor& b) {
  REQUIRE(a.sizes() == b.sizes());
  return (a.to(at::kInt) - b.to(at::kInt)).abs().max().item<int>();
}

std::string bytes_of(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(stream), {});
}

void put_file(const std::string& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

void put_big_endian(std::string& bytes, std::size_t at, std::uint32_t value, int count) {
  for (int i = 0; i < count; ++i)
    bytes[at + static_cast<std::size_t>(i)] = static_cast<char>(value >> 8 * (count - 1 - i));
}

// The message of the DataError that reading the first picture ends with.
std::string error_of(ImageFolder pictures) {
  try {
    pictures.get(0);
  } catch (const DataError& error) {
    return error.what();
  }
  return "no error";
}

std::string error_of(const OneClass& folder) { return error_of(ImageFolder(folder.dir.path())); }

}  // namespace

TEST_CASE("classes are the sorted names of sub-directories, pictures sorted by folder and name") {
  TempDir dir;
  const auto pixel = Raster::of(1, 1, 3, [](int, int, int) { return 9; });
  for (const char* folder : {"zebra", "ant/b", "ant/a", ".hidden", "ant/.hidden"})
    std::filesystem::create_directories(dir / folder);
  for (const char* name : {"zebra/2.PNG", "zebra/10.png", "ant/x.png", "ant/b/1.png", "ant/a/2.png", "loose.png",
                           ".hidden/1.png", "ant/.hidden/1.png", "ant/.x.png"})
    write_png(dir / name, pixel);
  write_jpeg(dir / "zebra/3.JPEG", pixel);
  put_file(dir / "zebra/notes.txt", "no picture");

  ImageFolder folder(dir.path());
  CHECK(folder.classes() == std::vector<std::string>{"ant", "zebra"});
  const std::vector<std::pair<std::string, std::int64_t>> expected{{"ant/x.png", 0},   {"ant/a/2.png", 0},
                                                                   {"ant/b/1.png", 0}, {"zebra/10.png", 1},
                                                                   {"zebra/2.PNG", 1}, {"zebra/3.JPEG", 1}};
  REQUIRE(folder.size() == expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    CHECK(folder.path(i) == dir / expected[i].first);
    CHECK(folder.get(i).target.item<std::int64_t>() == expected[i].second);
  }
}

TEST_CASE("one picture is read as the folder's sample, and pictures of a folder are listed without classes") {
  const TempDir dir;
  for (const char* name : {"a", "a/below", "b"}) std::filesystem::create_directories(dir / name);
  for (const char* name : {"a/z.png", "a/below/y.png", "b/x.PNG"}) write_png(dir / name, distinct(12, 20, 3));
  std::ofstream(dir / "b/notes.txt") << "no picture";
  const ImageFolderOptions options{
      .shorter_side = 9, .crop = ImageSize{8, 7}, .channels = 1, .transform = [](const at::Tensor& image) {
        return image.to(at::kFloat) * 2;
      }};
  ImageFolder folder(dir.path(), options);
  const auto listed = data::list_images(dir.path());
  REQUIRE(listed.size() == 3);
  for (std::size_t i = 0; i < listed.size(); ++i) {
    CHECK(listed[i] == folder.path(i));
    CHECK(at::equal(data::read_image(listed[i], options), folder.get(i).data));
  }
  CHECK(data::list_images(dir / "b") == std::vector<std::string>{dir / "b/x.PNG"});
  CHECK(data::read_image(dir / "b/x.PNG").sizes() == std::vector<std::int64_t>{3, 12, 20});
  CHECK_THROWS_AS(data::read_image(dir / "b/x.PNG", {.channels = 2}), ConfigError);
  CHECK_THROWS_WITH(data::read_image(dir / "b/none.png"), ContainsSubstring("b/none.png: cannot be opened"));
  std::filesystem::create_directory_symlink(dir.path(), dir / "b/up");
  CHECK_THROWS_WITH(data::list_images(dir.path()), ContainsSubstring("b/up: is a link that leads back"));
  std::filesystem::create_directory(dir / "empty");
  CHECK_THROWS_WITH(data::list_images(dir / "empty"), ContainsSubstring("empty: has no pictures"));
  CHECK_THROWS_AS(data::list_images(dir / "nowhere"), DataError);
}

TEST_CASE("a PNG comes out as the bytes that were written, and as numbers from 0 to 1") {
  const OneClass folder;
  const Raster raster = distinct(6, 9, 3);
  write_png(folder / "a.png", raster);
  CHECK(at::equal(folder.first_bytes(), planes(raster)));
  CHECK(at::equal(folder.first(), planes(raster).to(at::kFloat).div(255)));
  CHECK(at::equal(folder.first_bytes({.channels = 1}), grey(planes(raster))));
}

TEST_CASE("interlaced PNGs, and those with alpha, 16 bits, a palette or grey only, become colour or grey") {
  const OneClass folder;
  const std::string path = folder / "a.png";
  const Raster rgb = distinct(11, 13, 3);
  write_png(path, rgb, {.interlaced = true});
  CHECK(at::equal(folder.first_bytes(), planes(rgb)));

  const Raster rgba = distinct(5, 4, 4);
  write_png(path, rgba, {.color_type = PNG_COLOR_TYPE_RGBA});
  CHECK(at::equal(folder.first_bytes(), planes(rgba).slice(0, 0, 3)));

  const Raster wide = Raster::of(5, 4, 6, [](int y, int x, int c) { return y * 50 + x * 9 + c / 2; });  // v * 257
  write_png(path, wide, {.bit_depth = 16});
  CHECK(at::equal(folder.first_bytes(), planes(wide).index({torch::indexing::Slice(0, 6, 2)})));

  const Raster indices = Raster::of(3, 3, 1, [](int y, int x, int) { return (y + x) % 3; });
  const std::vector<png_color> palette{{255, 0, 10}, {20, 255, 30}, {40, 50, 255}};
  write_png(path, indices, {.color_type = PNG_COLOR_TYPE_PALETTE, .palette = palette, .transparent_first = true});
  const auto colors = at::tensor({255, 0, 10, 20, 255, 30, 40, 50, 255}, at::kByte).view({3, 3});
  const auto expected = colors.index({planes(indices)[0].to(at::kLong)}).permute({2, 0, 1});
  CHECK(at::equal(folder.first_bytes(), expected));
  CHECK(at::equal(folder.first_bytes({.channels = 1}), grey(expected)));

  const Raster shades = distinct(4, 7, 1);
  write_png(path, shades, {.color_type = PNG_COLOR_TYPE_GRAY});
  CHECK(at::equal(folder.first_bytes(), planes(shades).expand({3, 4, 7})));
  CHECK(at::equal(folder.first_bytes({.channels = 1}), planes(shades)));

  const Raster bits{2, 8, 1, {0b10110001, 0b01001110}};  // a byte a row
  write_png(path, bits, {.color_type = PNG_COLOR_TYPE_GRAY, .bit_depth = 1});
  CHECK(at::equal(folder.first_bytes({.channels = 1}).flatten(),
                  at::tensor({1, 0, 1, 1, 0, 0, 0, 1, 0, 1, 0, 0, 1, 1, 1, 0}, at::kByte) * 255));
}

TEST_CASE("a JPEG comes out nearly as it was written, plain or progressive, in colour or grey") {
  const OneClass folder;
  const std::string path = folder / "a.jpg";
  const Raster rgb = smooth(37, 50, 3), shades = smooth(37, 50, 1);
  for (bool progressive : {false, true}) {
    write_jpeg(path, rgb, {.progressive = progressive});
    CHECK(farthest(folder.first_bytes(), planes(rgb)) <= 6);
    CHECK(farthest(folder.first_bytes({.channels = 1}), grey(planes(rgb))) <= 4);
  }
  write_jpeg(path, rgb, {.file_colors = JCS_RGB});
  CHECK(farthest(folder.first_bytes(), planes(rgb)) <= 6);
  CHECK(farthest(folder.first_bytes({.channels = 1}), grey(planes(rgb))) <= 4);
  write_jpeg(path, shades, {.raster_colors = JCS_GRAYSCALE, .file_colors = JCS_GRAYSCALE});
  CHECK(farthest(folder.first_bytes({.channels = 1}), planes(shades)) <= 4);
  CHECK(farthest(folder.first_bytes(), planes(shades).expand({3, 37, 50})) <= 4);
}

TEST_CASE("a CMYK JPEG becomes the colours that its inverted inks mean") {
  const OneClass folder;
  const Raster inks = smooth(24, 40, 4);  // libjpeg marks it as Adobe's
  for (J_COLOR_SPACE kind : {JCS_CMYK, JCS_YCCK}) {
    write_jpeg(folder / "a.jpg", inks, {.raster_colors = JCS_CMYK, .file_colors = kind});
    const auto values = planes(inks).to(at::kDouble);
    const auto rgb = (values.slice(0, 0, 3) * values[3] / 255).round().to(at::kByte);
    CHECK(farthest(folder.first_bytes(), rgb) <= 8);
    CHECK(farthest(folder.first_bytes({.channels = 1}), grey(rgb)) <= 6);
  }
}

TEST_CASE("resizing keeps the shape or makes the size, and averages what becomes smaller") {
  const OneClass folder;
  const Raster raster = distinct(40, 61, 3);
  write_png(folder / "a.png", raster);
  const auto check = [&](const ImageFolderOptions& options, std::int64_t height, std::int64_t width) {
    const auto expected =
        at::_upsample_bilinear2d_aa(planes(raster).to(at::kFloat).unsqueeze(0), {height, width}, false).squeeze(0);
    CHECK(farthest(folder.first_bytes(options), expected.round()) <= 1);
  };
  check({.shorter_side = 20}, 20, 30);
  check({.shorter_side = 80}, 80, 122);
  check({.resize = ImageSize{16, 16}}, 16, 16);
  check({.resize = ImageSize{50, 7}}, 50, 7);
  CHECK(folder.first({.shorter_side = 10, .channels = 1}).sizes() == std::vector<std::int64_t>{1, 10, 15});
  write_png(folder / "a.png", distinct(61, 40, 3));
  CHECK(folder.first({.shorter_side = 20}).sizes() == std::vector<std::int64_t>{3, 30, 20});
}

TEST_CASE("a JPEG that is decoded at a fraction of its size has the resized shape and colours") {
  const OneClass folder;
  const Raster raster = smooth(401, 603, 3);
  write_jpeg(folder / "a.jpg", raster);
  for (std::int64_t side : {200, 100, 57, 20}) {
    const std::int64_t width = side * 603 / 401;
    const auto expected =
        at::_upsample_bilinear2d_aa(planes(raster).to(at::kFloat).unsqueeze(0), {side, width}, false).squeeze(0);
    CHECK(farthest(folder.first_bytes({.shorter_side = side}), expected.round()) <= 8);
  }
  CHECK(folder.first({.resize = ImageSize{30, 90}}).sizes() == std::vector<std::int64_t>{3, 30, 90});
}

TEST_CASE("the crop is the centre, and a picture that is smaller than it is an error") {
  const OneClass folder;
  const Raster raster = distinct(10, 9, 3);
  write_png(folder / "a.png", raster);
  CHECK(at::equal(folder.first_bytes({.crop = ImageSize{4, 3}}), planes(raster).slice(1, 3, 7).slice(2, 3, 6)));
  // Half a pixel goes to the even side, as in Python: (10 - 7) / 2 is 2, (9 - 8) / 2 is 0.
  CHECK(at::equal(folder.first_bytes({.crop = ImageSize{7, 8}}), planes(raster).slice(1, 2, 9).slice(2, 0, 8)));
  CHECK(at::equal(folder.first_bytes({.shorter_side = 18, .crop = ImageSize{4, 4}}),
                  folder.first_bytes({.shorter_side = 18}).slice(1, 8, 12).slice(2, 7, 11)));
  CHECK_THROWS_WITH(folder.first({.crop = ImageSize{10, 10}}),
                    ContainsSubstring("a.png") && ContainsSubstring("10 x 9 pixels, less than the crop of 10 x 10"));
}

TEST_CASE("pictures that are cut off have all pixels or are errors that name them, and changed ones decode or are so") {
  const OneClass folder;
  const std::string path = folder / "a.jpg";
  const Raster raster = distinct(9, 11, 3);
  const auto check = [&](const std::string& kind, std::size_t end,
                         bool header = true) {  // `end`: bytes after the pixels
    const std::string good = bytes_of(path);
    const ImageFolder pictures(folder.dir.path());
    REQUIRE(error_of(pictures) == "no error");
    const at::Tensor pixels = folder.first_bytes();
    std::vector<std::string> warnings;
    const ImageFolderOptions options{.on_warning = [&](const std::string& text) { warnings.push_back(text); }};
    for (std::size_t at = header ? 0 : good.find("\xff\xda"); at < good.size(); ++at) {
      CAPTURE(kind, at, good.size());
      put_file(path, good.substr(0, at));
      const std::string cut = error_of(pictures);
      if (end > 0 && at + end >= good.size()) CHECK(cut == "no error");
      if (cut == "no error") {
        warnings.clear();
        CHECK(at::equal(folder.first_bytes(options), pixels));
        REQUIRE(warnings.size() == 1);
        CHECK_THAT(warnings[0], ContainsSubstring("a.jpg: its file has no good end"));
      } else {
        CHECK_THAT(cut, ContainsSubstring("a.jpg"));
      }
      std::string changed = good;
      changed[at] = static_cast<char>(changed[at] ^ 0x55);
      put_file(path, changed);
      const std::string error = error_of(pictures);
      CHECK((error == "no error" || error.find("a.jpg") != std::string::npos));
    }
  };
  write_png(path, raster);
  check("PNG", 12 + 4 + 4);  // that it ends, and two checksums
  write_png(path, raster, {.interlaced = true});
  check("interlaced PNG", 12 + 4 + 4);
  write_png(path, distinct(1, 1, 3), {.interlaced = true});
  check("interlaced PNG of one pixel", 12 + 4 + 4);
  write_jpeg(path, raster);
  check("JPEG", 2);  // that it ends
  write_jpeg(path, raster, {.progressive = true});
  check("progressive JPEG", 2);
  write_jpeg(path, raster, {.separate_scans = true});
  check("JPEG with a scan for each component", 2, false);
  write_jpeg(path, raster, {.restart_interval = 1});
  check("JPEG with restart markers", 2, false);
  write_jpeg(path, raster, {.progressive = true, .restart_interval = 1});
  check("progressive JPEG with restart markers", 2, false);
  write_jpeg(path, raster, {.arithmetic = true});
  check("JPEG that is coded arithmetically", 0, false);
}

TEST_CASE("start-of-scan bytes that a JPEG does not use may be anything") {
  const OneClass folder;
  for (const int channels : {1, 3}) {
    write_jpeg(
        folder / "a.jpg", smooth(37, 50, channels),
        channels == 1 ? JpegOptions{.raster_colors = JCS_GRAYSCALE, .file_colors = JCS_GRAYSCALE} : JpegOptions{});
    const at::Tensor pixels = folder.first_bytes();
    std::string jpeg = bytes_of(folder / "a.jpg");
    const std::size_t bytes = jpeg.find("\xff\xda") + 5 + 2 * static_cast<std::size_t>(channels);
    for (const char* odd : {"\0\0\0", "\0\77\1", "\1\2\3"}) {
      jpeg.replace(bytes, 3, odd, 3);
      put_file(folder / "a.jpg", jpeg);
      CHECK(at::equal(folder.first_bytes(), pixels));
    }
  }
}

TEST_CASE("a wrong checksum of a PNG is an error where pixels are in doubt, and only there") {
  const OneClass folder;
  const std::string path = folder / "a.png";
  write_png(path, distinct(19, 23, 3));
  const at::Tensor pixels = folder.first_bytes();
  const std::string good = bytes_of(path);
  const std::size_t end = good.size() - 12;
  const auto with = [&](std::size_t place) {
    std::string changed = good;
    changed[place] = static_cast<char>(changed[place] ^ 1);
    put_file(path, changed);
    return error_of(folder);
  };
  CHECK(with(end - 1) == "no error");  // of the chunk; the data have another
  CHECK(at::equal(folder.first_bytes(), pixels));
  CHECK(with(good.size() - 1) == "no error");                                    // of the end
  CHECK_THAT(with(end - 5), ContainsSubstring("a.png: is a damaged PNG file"));  // of the data
  CHECK_THAT(with(end - 20), ContainsSubstring("a.png: is a damaged PNG file"));
  CHECK_THAT(with(30), ContainsSubstring("a.png: is a damaged PNG file"));  // of the header
}

TEST_CASE("an odd picture is told of once, whoever reads it how often") {
  const OneClass one;
  for (const char* name : {"0.png", "1.png", "2.png"}) write_png(one / name, distinct(8, 9, 3));
  for (const char* name : {"0.png", "2.png"}) {
    const std::string good = bytes_of(one / name);
    put_file(one / name, good.substr(0, good.size() - 12));
  }
  std::vector<std::string> warnings;
  ImageFolder folder(one.dir.path(), {.on_warning = [&](const std::string& text) { warnings.push_back(text); }});
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t)
    threads.emplace_back([copy = folder]() mutable {
      for (std::size_t i = 0; i < 30; ++i) copy.get(i % 3);
    });
  for (std::thread& thread : threads) thread.join();
  std::sort(warnings.begin(), warnings.end());
  REQUIRE(warnings.size() == 2);
  CHECK_THAT(warnings[0], ContainsSubstring("0.png"));
  CHECK_THAT(warnings[1], ContainsSubstring("2.png"));
}

TEST_CASE("linked folders and pictures count where they are linked") {
  const TempDir dir, elsewhere;
  const auto pixel = Raster::of(1, 1, 3, [](int, int, int) { return 9; });
  for (const char* folder : {"far/deep", "cat"}) std::filesystem::create_directories(elsewhere / folder);
  for (const char* name : {"far/1.png", "far/deep/2.png", "cat/3.png"}) write_png(elsewhere / name, pixel);
  std::filesystem::create_directories(dir / "ant/b");
  write_png(dir / "ant/b/4.png", pixel);
  std::filesystem::create_directory_symlink(elsewhere / "cat", dir / "cat");
  std::filesystem::create_directory_symlink(elsewhere / "far", dir / "ant/a");
  std::filesystem::create_directory_symlink(elsewhere / "far", dir / "ant/c");  // twice is no loop
  std::filesystem::create_directory_symlink("b", dir / "ant/d");
  std::filesystem::create_symlink(elsewhere / "cat/3.png", dir / "ant/5.png");
  std::filesystem::create_symlink("nowhere", dir / "ant/.hidden");
  ImageFolder folder(dir.path());
  CHECK(folder.classes() == std::vector<std::string>{"ant", "cat"});
  std::vector<std::string> names;
  for (std::size_t i = 0; i < *folder.size(); ++i) {
    names.push_back(folder.path(i).substr(dir.path().size() + 1));
    folder.get(i);
  }
  CHECK(names == std::vector<std::string>{"ant/5.png", "ant/a/1.png", "ant/a/deep/2.png", "ant/b/4.png", "ant/c/1.png",
                                          "ant/c/deep/2.png", "ant/d/4.png", "cat/3.png"});
}

TEST_CASE("links that lead back, or nowhere, are errors that name them") {
  struct Link {
    const char *place, *target, *what;
  };
  const Link link =
      GENERATE(Link{"things/loop", ".", "leads back"}, Link{"things/loop", "..", "leads back"},
               Link{"things/a/loop", "../../things", "leads back"}, Link{"things/a/loop", "../..", "leads back"},
               Link{"loop", ".", "leads back"}, Link{"things/a/x", "../b", "leads back"},  // and b/y to a
               Link{"things/self", "self", "leads nowhere"}, Link{"self", "self", "leads nowhere"},
               Link{"things/gone", "/no/such", "leads nowhere"}, Link{"things/a/gone.png", "x.png", "leads nowhere"},
               Link{"gone", "/no/such", "leads nowhere"});
  CAPTURE(link.place, link.target);
  const OneClass folder;
  for (const char* name : {"a", "b"}) std::filesystem::create_directory(folder / name);
  write_png(folder / "1.png", distinct(3, 4, 3));
  if (link.place == std::string("things/a/x")) std::filesystem::create_directory_symlink("../a", folder / "b/y");
  std::filesystem::create_symlink(link.target, folder.dir / link.place);
  CHECK_THROWS_AS(ImageFolder(folder.dir.path()), DataError);
  CHECK_THROWS_WITH(ImageFolder(folder.dir.path()), ContainsSubstring("is a link that " + std::string(link.what)));
}

TEST_CASE("a header that claims a huge picture is an error, not an allocation") {
  const OneClass folder;
  write_png(folder / "a.png", distinct(4, 4, 3));
  std::string png = bytes_of(folder / "a.png");
  put_big_endian(png, 16, 60000, 4);
  put_big_endian(png, 20, 60000, 4);
  const auto checksum = crc32(0, reinterpret_cast<const Bytef*>(png.data()) + 12, 17);
  put_big_endian(png, 29, static_cast<std::uint32_t>(checksum), 4);
  put_file(folder / "a.png", png);
  CHECK_THAT(error_of(folder), ContainsSubstring("a.png") && ContainsSubstring("60000 x 60000 pixels; at most"));

  write_jpeg(folder / "a.png", distinct(4, 4, 3));
  std::string jpeg = bytes_of(folder / "a.png");
  const std::size_t frame = jpeg.find("\xff\xc0");
  put_big_endian(jpeg, frame + 5, 65000, 2);
  put_big_endian(jpeg, frame + 7, 64000, 2);
  put_file(folder / "a.png", jpeg);
  CHECK_THAT(error_of(folder), ContainsSubstring("a.png") && ContainsSubstring("65000 x 64000 pixels; at most"));
}

TEST_CASE("the contents of a file count, not its name") {
  const OneClass folder;
  const Raster raster = distinct(3, 4, 3);
  write_png(folder / "a.jpg", raster);
  CHECK(at::equal(folder.first_bytes(), planes(raster)));
  put_file(folder / "a.jpg", "GIF89a, and more");
  CHECK_THAT(error_of(folder), ContainsSubstring("a.jpg: is no JPEG, PNG or WebP file"));
  put_file(folder / "a.jpg", "");
  CHECK_THAT(error_of(folder), ContainsSubstring("a.jpg") && ContainsSubstring("it is empty"));
}

TEST_CASE("bad pictures are left out where that is asked for, whoever looks, and their names are told") {
  const OneClass one;
  std::filesystem::create_directory(one.dir / "zebras");
  for (int i = 0; i < 8; ++i) write_jpeg(one / (std::to_string(i) + ".jpg"), smooth(30, 40, 3));
  write_png(one.dir / "zebras/a.png", distinct(6, 7, 3));
  const std::string good = bytes_of(one / "1.jpg");
  put_file(one / "1.jpg", good.substr(0, good.size() / 2));
  put_file(one / "4.jpg", "");
  put_file(one / "7.jpg", "GIF89a");
  std::vector<std::string> warnings;
  const ImageFolderOptions options{.shorter_side = 4,
                                   .on_bad = data::BadPictures::leave_out,
                                   .on_warning = [&](const std::string& text) { warnings.push_back(text); }};
  ImageFolder folder(one.dir.path(), options);
  CHECK(folder.size() == 6);
  REQUIRE(folder.left_out().size() == 3);
  CHECK_THAT(folder.left_out()[0], ContainsSubstring("1.jpg: is a damaged JPEG"));
  CHECK_THAT(folder.left_out()[1], ContainsSubstring("4.jpg") && ContainsSubstring("it is empty"));
  CHECK_THAT(folder.left_out()[2], ContainsSubstring("7.jpg: is no JPEG"));
  REQUIRE(warnings.size() == 3);
  CHECK_THAT(warnings[2], ContainsSubstring("7.jpg") && ContainsSubstring("it is left out"));
  CHECK(folder.path(1) == one / "2.jpg");
  for (std::size_t i = 0; i < 6; ++i) CHECK(folder.get(i).target.item<std::int64_t>() == (i < 5 ? 0 : 1));
  CHECK(ImageFolder(one.dir.path()).left_out().empty());
  CHECK(ImageFolder(one.dir.path()).size() == 9);
  // What is too small for the crop cannot be used either.
  CHECK(ImageFolder(one.dir.path(), {.crop = ImageSize{20, 20}, .on_bad = data::BadPictures::leave_out}).size() == 5);
  CHECK_THROWS_WITH(ImageFolder(one.dir.path(), {.crop = ImageSize{50, 50}, .on_bad = data::BadPictures::leave_out}),
                    ContainsSubstring("no picture can be read; the first: ") && ContainsSubstring("0.jpg"));
}

TEST_CASE("EXIF turns a picture where that is asked for, in either order of bytes, and may be anything else") {
  const OneClass folder;
  const Raster raster = smooth(24, 40, 3);
  write_jpeg(folder / "a.jpg", raster);
  const std::string plain = bytes_of(folder / "a.jpg");
  const at::Tensor lying = folder.first_bytes();
  const auto with_exif = [&](const std::string& tiff) {
    std::string segment = std::string("Exif\0\0", 6) + tiff, head = "\xff\xe1";
    head += static_cast<char>((segment.size() + 2) >> 8);
    head += static_cast<char>(segment.size() + 2);
    put_file(folder / "a.jpg", plain.substr(0, 2) + head + segment + plain.substr(2));
    return folder.first_bytes({.exif_orientation = true});
  };
  const auto little = [](int orientation) {
    return std::string("II*\0\10\0\0\0\1\0\22\1\3\0\1\0\0\0", 18) + static_cast<char>(orientation) +
           std::string(7, '\0');
  };
  const auto big = [](int orientation) {
    return std::string("MM\0*\0\0\0\10\0\1\1\22\0\3\0\0\0\1\0", 19) + static_cast<char>(orientation) +
           std::string(6, '\0');
  };
  const at::Tensor across = lying.transpose(1, 2);
  const std::vector<at::Tensor> expected{lying,  lying.flip(2),  lying.flip({1, 2}),  lying.flip(1),
                                         across, across.flip(2), across.flip({1, 2}), across.flip(1)};
  for (int orientation = 1; orientation <= 8; ++orientation) {
    INFO(orientation);
    CHECK(at::equal(with_exif(little(orientation)), expected[static_cast<std::size_t>(orientation) - 1]));
    CHECK(at::equal(with_exif(big(orientation)), expected[static_cast<std::size_t>(orientation) - 1]));
    CHECK(at::equal(folder.first_bytes(), lying));
  }
  with_exif(little(6));
  CHECK(folder.first({.exif_orientation = true, .resize = ImageSize{20, 12}}).sizes() ==
        std::vector<std::int64_t>{3, 20, 12});
  CHECK(folder.first({.exif_orientation = true, .crop = ImageSize{40, 24}}).sizes() ==
        std::vector<std::int64_t>{3, 40, 24});
  CHECK(folder.first({.exif_orientation = true, .shorter_side = 12}).sizes() == std::vector<std::int64_t>{3, 20, 12});
  const std::string whole = little(6);
  for (const int odd : {0, 9, 255}) CHECK(at::equal(with_exif(little(odd)), lying));
  for (std::size_t at = 0; at < whole.size(); ++at) {
    CHECK(with_exif(whole.substr(0, at)).numel() == lying.numel());
    for (const char value : {'\0', '\xff', '\x7f'}) {
      std::string changed = whole;
      changed[at] = value;
      CHECK(with_exif(changed).numel() == lying.numel());
    }
  }
}

TEST_CASE("names may be UTF-8 or any bytes, and ten thousand pictures may lie in one folder") {
  const TempDir dir;
  const std::vector<std::string> names{"\xc3\xa9t\xc3\xa9 \xe6\x97\xa5\xe6\x9c\xac", "plain", "\xff\xfe odd"};
  for (const std::string& name : names) {
    std::filesystem::create_directory(dir / name);
    write_png(dir / (name + "/" + name + " \xf0\x9f\x90\x88.png"), distinct(3, 4, 3));
  }
  ImageFolder folder(dir.path());
  CHECK(folder.classes() == std::vector<std::string>{"plain", names[0], names[2]});
  for (std::size_t i = 0; i < 3; ++i)
    CHECK(at::equal(folder.get(i).target, at::scalar_tensor(static_cast<std::int64_t>(i))));
  constexpr std::size_t kMany = 10'000;
  for (std::size_t i = 1; i < kMany; ++i)
    std::filesystem::create_hard_link(dir / ("plain/plain \xf0\x9f\x90\x88.png"),
                                      dir / ("plain/" + std::to_string(i) + ".png"));
  ImageFolder many(dir.path(), {.on_bad = data::BadPictures::leave_out});
  CHECK(many.size() == kMany + 2);
  CHECK(many.get(kMany - 2).data.sizes() == std::vector<std::int64_t>{3, 3, 4});
}

TEST_CASE("a transform gets the picture as bytes, and what it gives is the sample") {
  const OneClass folder;
  const Raster raster = distinct(6, 9, 3);
  write_png(folder / "a.png", raster);
  const auto doubled = [](const at::Tensor& image) { return image.to(at::kDouble).mul(2); };
  CHECK(at::equal(folder.first({.transform = doubled}), planes(raster).to(at::kDouble).mul(2)));
  const auto flipped = [](const at::Tensor& image) { return image.flip(2); };
  CHECK(at::equal(folder.first_bytes({.transform = flipped}), planes(raster).flip(2)));
  CHECK(at::equal(folder.first({.transform = flipped}), planes(raster).flip(2).to(at::kFloat).div(255)));
  CHECK(at::equal(folder.first_bytes({.crop = ImageSize{4, 3}, .transform = flipped}),
                  folder.first_bytes({.crop = ImageSize{4, 3}}).flip(2)));
  CHECK_THROWS_WITH(folder.first({.transform = [](const at::Tensor&) { return at::Tensor(); }}),
                    ContainsSubstring("a.png: the transform gave an undefined tensor"));
}

TEST_CASE("folders without classes or pictures, and options out of range, are errors that say so") {
  TempDir dir;
  CHECK_THROWS_WITH(ImageFolder(dir / "nowhere"), ContainsSubstring("nowhere: does not exist"));
  put_file(dir / "file", "x");
  CHECK_THROWS_WITH(ImageFolder(dir / "file"), ContainsSubstring("is no directory"));
  CHECK_THROWS_WITH(ImageFolder(dir.path()), ContainsSubstring("has no sub-directories"));
  const OneClass empty;
  CHECK_THROWS_WITH(ImageFolder(empty.dir.path()), ContainsSubstring("things: has no pictures"));
  CHECK_THROWS_AS(ImageFolder(empty.dir.path()), DataError);
  const auto check = [&](const ImageFolderOptions& options) {
    CHECK_THROWS_AS(ImageFolder(empty.dir.path(), options), ConfigError);
  };
  check({.shorter_side = 0});
  check({.shorter_side = 8, .resize = ImageSize{8, 8}});
  check({.resize = ImageSize{8, 0}});
  check({.crop = ImageSize{-1, 8}});
  check({.resize = ImageSize{1 << 20, 1 << 20}});
  check({.channels = 4});
}

TEST_CASE("a picture that went away, and an index that is none, are errors") {
  const OneClass one;
  write_png(one / "a.png", distinct(3, 4, 3));
  ImageFolder folder(one.dir.path());
  CHECK_THROWS_WITH(folder.get(1), ContainsSubstring("picture 1 does not exist; there are 1"));
  std::filesystem::remove(one / "a.png");
  CHECK_THROWS_WITH(folder.get(0), ContainsSubstring("a.png: cannot be opened"));
}

TEST_CASE("threads that read pictures at once get the same as one alone") {
  const OneClass one;
  for (int i = 0; i < 6; ++i) {
    const Raster raster = distinct(40 + i, 60 - i, 3);
    if (i % 3 == 0) write_png(one / (std::to_string(i) + ".png"), raster);
    if (i % 3 == 1) write_jpeg(one / (std::to_string(i) + ".png"), raster);
    if (i % 3 == 2) put_file(one / (std::to_string(i) + ".png"), "\xff\xd8\xff damaged");
  }
  ImageFolder folder(one.dir.path(), {.shorter_side = 16, .crop = ImageSize{16, 16}});
  const auto read = [&folder](std::size_t i) {
    try {
      return folder.get(i).data;
    } catch (const DataError&) {
      return at::zeros({1});
    }
  };
  std::vector<at::Tensor> alone;
  for (std::size_t i = 0; i < 6; ++i) alone.push_back(read(i));
  std::atomic<int> different{0};
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (std::size_t i = t; i < t + 60; ++i)
        if (!at::equal(read(i % 6), alone[i % 6])) ++different;
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(different == 0);
}

TEST_CASE("a loader stacks the pictures of a folder to batches") {
  const OneClass one;
  for (int i = 0; i < 3; ++i) write_png(one / (std::to_string(i) + ".png"), distinct(8 + i, 9, 3));
  const data::DataLoader loader(ImageFolder(one.dir.path(), {.resize = ImageSize{6, 5}}), {.batch_size = 2});
  const auto batch = loader.reader()({2, 0}, {});
  CHECK(batch.data.sizes() == std::vector<std::int64_t>{2, 3, 6, 5});
  CHECK(at::equal(batch.data[1], loader.dataset().get(0).data));
  CHECK(at::equal(batch.target, at::zeros({2}, at::kLong)));
}
