// Files from strangers, at random: whatever they hold, reading them gives a value or Tandem's error.
#include <fstream>
#include <functional>

#include <ATen/Functions.h>

#include "checkpoint/state_file.h"
#include "data/idx_file.h"
#include "support/catch.h"
#include "support/file_bytes.h"
#include "support/mutated.h"
#include "support/temp_dir.h"
#include "tandem/core/error.h"
#include "tandem/io/checkpoint_directory.h"
#include "tandem/io/pickle_file.h"
#include "tandem/io/safetensors.h"

using namespace tandem;
using namespace tandem::io;
using namespace tandem::test;

namespace {

std::string get(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Reads `whole`, changed and cut off in many ways. Returns how often that was an error.
int read_mutated(const std::string& whole, int rounds, const std::function<void(const std::string&)>& read) {
  std::mt19937 random(static_cast<unsigned>(whole.size()));
  int errors = 0;
  const auto try_to = [&](const std::string& bytes) {
    try {
      read(bytes);
    } catch (const Error&) {
      errors += 1;
    }
  };
  for (std::size_t cut = 0; cut < whole.size(); cut += 1 + whole.size() / 500) try_to(whole.substr(0, cut));
  for (int round = 0; round < rounds; ++round) try_to(mutated(whole, random));
  return errors;
}

}  // namespace

TEST_CASE("mutated safetensors") {
  const TempDir dir;
  save_safetensors(dir / "file", {{"0.weight", at::arange(12, at::kFloat).view({3, 4})}, {"0.bias", at::ones({3})}},
                   {{"format", "pt"}});
  CHECK(read_mutated(get(dir / "file"), 20'000, [&](const std::string& bytes) {
          put_bytes(dir / "changed", bytes);
          load_safetensors(dir / "changed");
        }) > 1000);
}

TEST_CASE("mutated files of torch.save") {
  const TempDir dir;
  c10::impl::GenericDict state(c10::AnyType::get(), c10::AnyType::get());
  state.insert(std::int64_t{0}, at::arange(6, at::kFloat).view({2, 3}).t());
  state.insert("pair", c10::ivalue::Tuple::create({0.9, std::int64_t{1} << 40}));
  {
    std::ofstream file(dir / "file", std::ios::binary);
    write_pickle([&](const void* data, std::size_t bytes) { file.write(static_cast<const char*>(data), bytes); },
                 "file", state);
  }
  CHECK(read_mutated(get(dir / "file"), 10'000, [&](const std::string& bytes) {
          put_bytes(dir / "changed", bytes);
          read_pickle(dir / "changed");
        }) > 1000);
}

TEST_CASE("mutated manifests") {
  const TempDir dir;
  CheckpointWriter writer(dir / "state");
  writer.add("a", "some bytes");
  writer.commit({{"kind", "test"}});
  CHECK(read_mutated(get(dir / "state/manifest.json"), 10'000, [&](const std::string& bytes) {
          put_bytes(dir / "state/manifest.json", bytes);
          const CheckpointReader reader(dir / "state");
          reader.verify();
        }) > 1000);
}

TEST_CASE("mutated tandem_state.json") {
  StateFile state;
  state.optimizers = {{7, false}};
  state.loaders = {{.epoch = 1, .step = 2, .global_batch_size = 8, .generator = at::ones({4}, at::kByte)}};
  state.loaders.push_back(state.loaders[0]);
  state.loaders[1].sampler = data::SamplerState{
      .seed = 42, .drawn = {{0, 3, 1, true}, {3, 1, 0, false}}, .order = 0xffffffffffffffffull, .running = true};
  state.loaders.push_back({.generator = at::ones({4}, at::kDouble)});  // in a file of its own
  state.generators = {{"abc", ""}};
  state.hook_files = {"camera.json"};
  const std::string whole = to_text(state, "shown");
  const StateFile back = parse_state_file(whole, "shown");
  CHECK((back.loaders[1].sampler->drawn == state.loaders[1].sampler->drawn));
  CHECK(back.sampler_files == std::vector<std::size_t>{2});
  state.loaders.pop_back();
  CHECK(to_text(parse_state_file(to_text(state, "shown"), "shown"), "shown") == to_text(state, "shown"));
  CHECK(read_mutated(whole, 20'000, [](const std::string& bytes) { parse_state_file(bytes, "shown"); }) > 1000);
}

TEST_CASE("mutated IDX files") {
  const TempDir dir;
  const std::string header("\0\0\x08\x03\0\0\0\x02\0\0\0\x04\0\0\0\x04", 16);
  CHECK(read_mutated(header + std::string(32, '\x7f'), 20'000, [&](const std::string& bytes) {
          put_bytes(dir / "images", bytes);
          data::read_idx(dir.path(), "images", 3, std::nullopt);
        }) > 1000);
}
