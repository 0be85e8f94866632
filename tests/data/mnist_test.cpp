#include "tandem/data/mnist.h"

#include <zlib.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include <torch/types.h>

#include "support/catch.h"
#include "support/temp_dir.h"
#include "tandem/core/error.h"

using namespace tandem;
using tandem::test::TempDir;

namespace {

std::string real_data() { return std::string(std::getenv("TANDEM_SOURCE_DIR")) + "/data/mnist"; }

void put32(std::string& bytes, std::uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) bytes.push_back(static_cast<char>(value >> shift));
}

std::string images(std::uint32_t count, std::uint32_t claimed) {
  std::string bytes;
  for (std::uint32_t value : {0x803u, claimed, 28u, 28u}) put32(bytes, value);
  for (std::uint32_t i = 0; i < count * 784; ++i) bytes.push_back(static_cast<char>(i * 7));
  return bytes;
}

std::string labels(std::uint32_t count, std::uint32_t claimed, char first = 3) {
  std::string bytes;
  put32(bytes, 0x801);
  put32(bytes, claimed);
  for (std::uint32_t i = 0; i < count; ++i) bytes.push_back(i == 0 ? first : static_cast<char>(i % 10));
  return bytes;
}

std::string gzipped(const std::string& bytes) {
  TempDir dir;
  const std::string path = dir / "x.gz";
  gzFile file = gzopen(path.c_str(), "wb");
  gzwrite(file, bytes.data(), static_cast<unsigned>(bytes.size()));
  gzclose(file);
  std::ifstream stream(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(stream), {});
}

void put_file(const std::string& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

// A directory of training files with these bytes.
struct Files {
  TempDir dir;
  Files(const std::string& image_bytes, const std::string& label_bytes, const std::string& suffix = ".gz") {
    put_file(dir / ("train-images-idx3-ubyte" + suffix), image_bytes);
    put_file(dir / ("train-labels-idx1-ubyte" + suffix), label_bytes);
  }
  std::string error() const {
    try {
      data::mnist(dir.path());
    } catch (const DataError& error) {
      return error.what();
    }
    return "no error";
  }
};

}  // namespace

TEST_CASE("the real files are read") {
  auto train = data::mnist(real_data());
  auto test = data::mnist(real_data(), {.split = data::MnistSplit::test});
  CHECK(train.size() == 60000u);
  CHECK(test.size() == 10000u);
  const auto batch = train.get_batch(std::vector<std::size_t>{0, 1, 59999});
  CHECK(batch.data.sizes() == std::vector<std::int64_t>{3, 1, 28, 28});
  CHECK(at::equal(batch.target, at::tensor({5, 0, 8}, at::kLong)));
  CHECK(test.get_batch(std::vector<std::size_t>{0}).target.item<std::int64_t>() == 7);
}

TEST_CASE("every pixel value becomes what the tensor operations give, to the bit") {
  std::string all = images(1, 1);
  for (int v = 0; v < 256; ++v) all[static_cast<std::size_t>(16 + v)] = static_cast<char>(v);
  const Files files(gzipped(all), gzipped(labels(1, 1)));
  const auto values = at::arange(256, at::kFloat);
  const std::vector<std::size_t> first{0};
  auto normalized = data::mnist(files.dir.path()).get_batch(first).data.flatten().slice(0, 0, 256);
  CHECK(at::equal(normalized, values.div(255).sub(0.1307).div(0.3081)));
  auto plain = data::mnist(files.dir.path(), {.normalize = data::MnistNormalize::none}).get_batch(first).data.flatten();
  CHECK(at::equal(plain.slice(0, 0, 256), values.div(255)));
}

TEST_CASE("plain files are read as well as gzipped ones, and a limit keeps the first samples") {
  const Files plain(images(5, 5), labels(5, 5), ""), packed(gzipped(images(5, 5)), gzipped(labels(5, 5)));
  const std::vector<std::size_t> third{2};
  CHECK(at::equal(data::mnist(plain.dir.path()).get_batch(third).data,
                  data::mnist(packed.dir.path()).get_batch(third).data));
  auto limited = data::mnist(plain.dir.path(), {.limit = 3});
  CHECK(limited.size() == 3u);
  CHECK_THROWS_AS(limited.get_batch(std::vector<std::size_t>{3}), DataError);
  CHECK(data::mnist(plain.dir.path(), {.limit = 99}).size() == 5u);
  CHECK_THROWS_AS(data::mnist(plain.dir.path(), {.limit = 0}), ConfigError);
}

TEST_CASE("files that are cut off, damaged or of another kind are errors that name them") {
  const auto good_images = images(5, 5), good_labels = labels(5, 5);
  const std::string image_name = "train-images-idx3-ubyte", label_name = "train-labels-idx1-ubyte";
  const auto check = [](const Files& files, const std::string& file, const std::string& text) {
    CHECK_THAT(files.error(), ContainsSubstring(file) && ContainsSubstring(text));
  };
  check({good_images.substr(0, 1000), good_labels, ""}, image_name, "cut off");
  check({gzipped(good_images).substr(0, 60), gzipped(good_labels)}, image_name, "cut off");
  check({good_images + "x", good_labels, ""}, image_name, "longer than its header says");
  check({good_labels, good_images, ""}, label_name, "swapped");
  check({"", good_labels, ""}, image_name, "too short");
  check({"this is no such file at all", good_labels, ""}, image_name, "no IDX file");
  check({images(5, 4000000000u), labels(5, 4000000000u), ""}, label_name, "more than it can");
  check({images(5, 4000000000u), good_labels, ""}, image_name, "more than it can");
  check({good_images, labels(4, 4), ""}, image_name, "do not belong together");
  check({good_images, labels(5, 5, 77), ""}, label_name, "labels are 0 to 9");
  auto other_size = good_images;
  other_size[11] = 27;
  check({other_size.substr(0, other_size.size() - 5 * 28), good_labels, ""}, image_name, "27 x 28");
  auto corrupt = gzipped(good_images);
  corrupt[corrupt.size() - 6] = static_cast<char>(corrupt[corrupt.size() - 6] ^ 1);  // the checksum
  check({corrupt, gzipped(good_labels)}, image_name, "damaged");
}

TEST_CASE("a file cut off or changed at any place is an error or reads as before, never worse") {
  const auto packed = gzipped(images(3, 3));
  for (std::size_t at = 0; at < packed.size(); at += 7) {
    auto changed = packed;
    changed[at] = static_cast<char>(changed[at] ^ 0x55);
    const Files flipped(changed, gzipped(labels(3, 3))), cut(packed.substr(0, at), gzipped(labels(3, 3)));
    CHECK_THAT(cut.error(), ContainsSubstring("train-images"));
    const auto error = flipped.error();
    CHECK((error == "no error" || error.find("train-images") != std::string::npos));
  }
}

TEST_CASE("a missing directory or file says what is missing") {
  TempDir dir;
  CHECK_THROWS_WITH(data::mnist(dir / "nowhere"), ContainsSubstring("nowhere") && ContainsSubstring("does not exist"));
  CHECK_THROWS_WITH(data::mnist(dir.path()), ContainsSubstring("train-labels-idx1-ubyte"));
  std::filesystem::create_directory(dir / "train-labels-idx1-ubyte.gz");
  CHECK_THROWS_WITH(data::mnist(dir.path()), ContainsSubstring("is no file"));
}
