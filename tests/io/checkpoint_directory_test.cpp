// Directories that appear whole or not at all.
#include "tandem/io/checkpoint_directory.h"
#include "support/file_bytes.h"

#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include <nlohmann/json.hpp>

#include "support/catch.h"
#include "support/error_of.h"
#include "support/failing_calls.h"
#include "support/temp_dir.h"
#include "tandem/core/error.h"

using namespace tandem;
using namespace tandem::io;
using namespace tandem::test;
namespace fs = std::filesystem;

namespace {

using Contents = std::map<std::string, std::string>;

Contents contents(int version) {
  std::string large(100'000, static_cast<char>('a' + version % 26));
  return {{"model.safetensors", large}, {"optimizer.bin", "state " + std::to_string(version)}, {"empty", ""}};
}

void save(const std::string& path, int version) {
  CheckpointWriter writer(path);
  for (const auto& [name, bytes] : contents(version)) writer.add(name, bytes);
  writer.commit({{"version", std::to_string(version)}});
}

// The version that is there, whole; throws otherwise.
int load(const std::string& path) {
  const CheckpointReader reader(path);
  reader.verify();
  const int version = std::stoi(reader.info().at("version"));
  Contents all;
  for (const std::string& name : reader.names()) all[name] = reader.read(name);
  if (all != contents(version)) throw std::logic_error("a mixture of versions");
  return version;
}

// As a stranger would make it: with a crc32 that fits.
void put_manifest(const std::string& directory, const nlohmann::json& manifest) {
  CheckpointWriter writer(directory + ".pattern");
  writer.commit();
  auto text = manifest;
  text.erase("crc32");
  std::string dump = text.dump();
  // The format's own rule, written down once more.
  std::uint32_t crc = 0xFFFFFFFFu;
  for (const unsigned char byte : dump) {
    crc ^= byte;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
  }
  char hex[9];
  std::snprintf(hex, sizeof hex, "%08x", ~crc);
  text["crc32"] = hex;
  put_bytes(directory + "/manifest.json", text.dump(1) + "\n");
}

}  // namespace

TEST_CASE("a checkpoint's directory is read as it was written, and replaced as a whole") {
  const TempDir directory;
  const std::string path = directory / "checkpoint";
  const bool empty_before = GENERATE(false, true);
  if (empty_before) fs::create_directory(path);
  save(empty_before ? path + "/" : path, 1);
  CHECK(load(path) == 1);
  save(path, 2);
  CHECK(load(path + "/") == 2);
  CHECK(entries_in(directory.path()) == 1);
  CHECK(CheckpointReader(path).bytes_of("model.safetensors") == 100'000);
  CHECK_FALSE(CheckpointReader(path).has("other"));
  CHECK_THAT(error_of<CheckpointError>([&] { CheckpointReader(path).read("other"); }),
             ContainsSubstring("has no file 'other'"));
}

TEST_CASE("a writer that is not committed leaves what was there") {
  const TempDir directory;
  const std::string path = directory / "checkpoint";
  save(path, 1);
  {
    CheckpointWriter writer(path);
    writer.add("model.safetensors", "half of it");
    CHECK_THROWS_AS(writer.add({{"optimizer.bin", [](const WriteBytes&) { throw std::runtime_error("on fire"); }}}),
                    std::runtime_error);
  }
  CHECK(load(path) == 1);
  CHECK(entries_in(directory.path()) == 1);
}

TEST_CASE("names that lead elsewhere, files that come twice, and places of something else are errors") {
  const TempDir directory;
  const std::string path = directory / "checkpoint";
  {
    CheckpointWriter writer(path);
    writer.add("a", "1");
    for (const char* name : {"", ".", "..", "../a", "/tmp/a", "a/b", ".hidden", "manifest.json", "a b", "ü"})
      CHECK_THAT(error_of<CheckpointError>([&] { writer.add(name, "2"); }), ContainsSubstring("cannot be named"));
    CHECK_THAT(error_of<CheckpointError>([&] { writer.add("a", "2"); }), ContainsSubstring("'a' comes twice"));
    CHECK_THAT(error_of<CheckpointError>([&] {
                 writer.commit({{"text", "\xff"}});
               }),
               ContainsSubstring(R"(manifest.json: the text '\xff' is no UTF-8)"));
  }
  put_bytes(directory / "file", "text");
  CHECK_THAT(error_of<CheckpointError>([&] { CheckpointWriter(directory / "file"); }),
             ContainsSubstring("no directory"));
  fs::create_directory(directory / "photos");
  put_bytes(directory / "photos/cat.jpg", "cat");
  CHECK_THAT(error_of<CheckpointError>([&] { CheckpointWriter(directory / "photos"); }),
             ContainsSubstring("is a directory of other files"));
  CHECK(bytes_of(directory / "photos/cat.jpg") == "cat");
  put_bytes(directory / "photos/manifest.json", "{\"name\": \"an album\"}");
  CHECK_THAT(error_of<CheckpointError>([&] { CheckpointWriter(directory / "photos"); }),
             ContainsSubstring("is no manifest"));
  save(directory / "mine", 1);
  put_bytes(directory / "mine/tokenizer.json", "{}");
  CHECK_THAT(error_of<CheckpointError>([&] { save(directory / "mine", 2); }),
             ContainsSubstring("has the file 'tokenizer.json'"));
  CHECK(load(directory / "mine") == 1);
  CHECK_THAT(error_of<CheckpointError>([&] { CheckpointWriter(directory / "none/checkpoint"); }),
             ContainsSubstring("No such file or directory"));
  CHECK_THAT(error_of<CheckpointError>([&] { CheckpointWriter(""); }), ContainsSubstring("the name is empty"));
  save(directory / std::string(255, 'n'), 3);
  CHECK(load(directory / std::string(255, 'n')) == 3);
}

TEST_CASE("a checkpoint goes where links lead, and they stay") {
  const TempDir directory;
  fs::create_directory(directory / "there");
  const bool dangling = GENERATE(true, false);
  if (!dangling) save(directory / "there/checkpoint", 1);
  fs::create_symlink("there/checkpoint", directory / "link");
  fs::create_symlink(directory / "link", directory / "twice");
  for (const std::string& path : {directory / "link", directory / "twice", directory / "link/"}) {
    save(path, 2);
    CHECK(load(directory / "there/checkpoint") == 2);
    CHECK(load(path) == 2);
    CHECK(fs::is_symlink(directory / "link"));
  }
  CHECK(entries_in(directory / "there") == 1);
  CHECK(entries_in(directory.path()) == 3);
}

TEST_CASE("a mount point is refused before anything is written, with what to do") {
  const TempDir directory;
  fs::create_directory(directory / "disk");
  fs::create_directory(directory / "other");
  fs::create_symlink("disk", directory / "link");
  // In a mount namespace of its own, which goes with the process.
  const pid_t child = fork();
  if (child == 0) {
    if (::unshare(CLONE_NEWNS) != 0 || ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) _exit(77);
    bool good = true;
    for (const bool bind : {true, false}) {
      const int mounted =
          bind ? ::mount((directory / "other").c_str(), (directory / "disk").c_str(), nullptr, MS_BIND, nullptr)
               : ::mount("none", (directory / "disk").c_str(), "tmpfs", 0, nullptr);
      if (mounted != 0) _exit(77);
      for (const std::string& path : {directory / "disk", directory / "disk/", directory / "link"}) {
        const std::string said = error_of<CheckpointError>([&] { CheckpointWriter writer(path); });
        good = good && said.find("disk: is a mount point") != std::string::npos &&
               said.find("such as " + (directory / "disk/model")) != std::string::npos;
      }
      save(directory / "disk/model", 1);
      good = good && load(directory / "link/model") == 1 && entries_in(directory.path()) == 3;
    }
    _exit(good ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  REQUIRE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 77)
    WARN("nothing can be mounted here: not tested");
  else
    CHECK(WEXITSTATUS(status) == 0);
}

TEST_CASE("a file system that cannot sync directories or files gets checkpoints all the same") {
  const TempDir directory;
  const std::string call = GENERATE("fsync-directory", "fsync");
  int version = 0;
  for (const int error : {EINVAL, ENOTSUP, ENOSYS, EBADF, EACCES, EPERM, ENOTTY, EISDIR}) {
    const FailingCall failing(call, kEach, error);
    CAPTURE(call, error);
    save(directory / "checkpoint", ++version);
    CHECK(failing.came());
    CHECK(load(directory / "checkpoint") == version);
  }
  for (const int error : {EIO, ENOSPC, EDQUOT}) {
    const FailingCall failing(call, kEach, error);
    CHECK_THAT(error_of<CheckpointError>([&] { save(directory / "checkpoint", 99); }),
               ContainsSubstring(std::strerror(error)));
    CHECK(load(directory / "checkpoint") == version);
  }
}

TEST_CASE("a file system that exchanges nothing is found out before anything is written") {
  const TempDir directory;
  const FailingCall failing("renameat2", kEach, GENERATE(EINVAL, ENOSYS, ENOTSUP));
  save(directory / "checkpoint", 1);
  CHECK_THAT(error_of<CheckpointError>([&] { CheckpointWriter writer(directory / "checkpoint"); }),
             ContainsSubstring("exchanges no directories; save under another name"));
  CHECK(load(directory / "checkpoint") == 1);
  CHECK(entries_in(directory.path()) == 1);
}

TEST_CASE("each system call of a save that fails leaves the checkpoint before, or the new one") {
  const std::string call = GENERATE(from_range(failing_calls()));
  const int error = GENERATE(ENOSPC, EIO, EROFS, EINTR, 0);
  if (error == 0 && call != "write") return;
  const bool replaces = GENERATE(true, false);
  CAPTURE(call, error, replaces);
  int failed = 0, nth = 1;
  for (bool came = true; came; ++nth) {
    const TempDir directory;
    const std::string path = directory / "checkpoint";
    if (replaces) save(path, 1);
    std::string said;
    {
      const FailingCall failing(call, nth, error);
      said = error_of<CheckpointError>([&] { save(path, 2); });
      came = failing.came();
    }
    CAPTURE(nth, said);
    failed += said.empty() ? 0 : 1;
    if (said.empty() || said.find("was written, but may be gone") != std::string::npos)
      REQUIRE(load(path) == 2);
    else if (replaces)
      REQUIRE(load(path) == 1);
    else
      REQUIRE_FALSE(fs::exists(path));
    save(path, 3);
    REQUIRE(load(path) == 3);
    REQUIRE(entries_in(directory.path()) == 1);
  }
  CHECK(nth > 2);
  // What a signal interrupts is done again, and so are short writes; locks only keep others away.
  const bool harmless = error == 0 || (call == "flock" && error != EWOULDBLOCK) ||
                        (error == EINTR && call != "mkdir" && call != "renameat2");
  if (harmless && call != "close")
    CHECK(failed == 0);
  else
    CHECK(failed > 0);
}

TEST_CASE("killed at any moment of its saves, a program leaves a whole checkpoint") {
  const TempDir directory;
  const std::string path = directory / "checkpoint";
  save(path, 0);
  std::mt19937 random(7);
  int last = 0;
  for (int trial = 0; trial < 60 || last <= 10; ++trial) {  // a busy machine saves less between two kills
    const pid_t child = fork();
    if (child == 0) {
      try {
        for (int version = last + 1;; ++version) save(path, version);
      } catch (...) {
        _exit(1);
      }
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 20'000));
    kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
    REQUIRE(WIFSIGNALED(status));
    const int now = load(path);
    REQUIRE(now >= last);
    last = now;
  }
  save(path, last + 1);
  CHECK(entries_in(directory.path()) == 1);  // what the killed ones left is gone
}

TEST_CASE("a writer that has committed writes nothing more") {
  const TempDir directory;
  const bool replaces = GENERATE(false, true);
  if (replaces) save(directory / "checkpoint", 1);
  CheckpointWriter writer(directory / "checkpoint");
  writer.add("a", "1");
  writer.commit();
  CHECK_THAT(error_of<CheckpointError>([&] { writer.add("b", "2"); }), ContainsSubstring("has been committed already"));
  CHECK_THAT(error_of<CheckpointError>([&] { writer.commit(); }), ContainsSubstring("has been committed already"));
  CHECK(CheckpointReader(directory / "checkpoint").names() == std::vector<std::string>{"a"});
}

TEST_CASE("a file that is removed under a writer keeps the checkpoint before in place") {
  const TempDir directory;
  save(directory / "checkpoint", 1);
  {
    CheckpointWriter writer(directory / "checkpoint");
    writer.add("a", "1");
    for (const auto& entry : fs::directory_iterator(directory.path()))
      if (entry.path().filename().string().starts_with(".")) fs::remove(entry.path() / "a");
    CHECK_THAT(error_of<CheckpointError>([&] { writer.commit(); }), ContainsSubstring("a: does not exist"));
  }
  CHECK(load(directory / "checkpoint") == 1);
}

TEST_CASE("a reader goes on with the directory that it has opened when another takes its place") {
  const TempDir directory;
  const std::string path = directory / "checkpoint";
  save(path, 1);
  const CheckpointReader reader(path);
  save(path, 2);
  CHECK_THAT(error_of<CheckpointError>([&] { reader.read("model.safetensors"); }), ContainsSubstring("does not exist"));
  CHECK(load(path) == 2);
}

TEST_CASE("writers of one directory at once each leave a whole one") {
  const TempDir directory;
  const std::string path = directory / "checkpoint";
  save(path, 1);
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int thread = 0; thread < 4; ++thread)
    threads.emplace_back([&, thread] {
      for (int version = thread; version < 80; version += 4) {
        try {
          save(path, version);
        } catch (const CheckpointError&) {  // another was faster
        }
        try {
          load(path);
        } catch (const CheckpointError&) {  // replaced meanwhile
        } catch (...) {
          wrong += 1;
        }
      }
    });
  for (auto& thread : threads) thread.join();
  CHECK(wrong == 0);
  save(path, 80);
  CHECK(load(path) == 80);
  CHECK(entries_in(directory.path()) == 1);
}

TEST_CASE("a writer that lives is left alone by others beside it") {
  const TempDir directory;
  CheckpointWriter first(directory / "one");
  first.add("a", "1");
  save(directory / "two", 2);
  first.add("b", "2");
  first.commit();
  CHECK(CheckpointReader(directory / "one").read("a") == "1");
  CHECK(load(directory / "two") == 2);
}

TEST_CASE("every byte of a checkpoint that is another one is found, and so is every cut") {
  const TempDir directory;
  const std::string path = directory / "checkpoint";
  {
    CheckpointWriter writer(path);
    writer.add("model.safetensors", "some weights");
    writer.add("optimizer.bin", "and a state");
    writer.commit({{"step", "12"}});
  }
  const auto check = [&] { return error_of<CheckpointError>([&] { CheckpointReader(path).verify(); }); };
  REQUIRE(check() == "");
  for (const char* name : {"manifest.json", "model.safetensors", "optimizer.bin"}) {
    const std::string file = path + "/" + name, good = bytes_of(file);
    for (std::size_t at = 0; at < good.size(); ++at)
      for (const int flip : {1, 0x20, 0x80}) {
        std::string bad = good;
        bad[at] = static_cast<char>(bad[at] ^ flip);
        put_bytes(file, bad);
        CAPTURE(name, at, flip);
        REQUIRE_THAT(check(), ContainsSubstring(name));
      }
    for (const std::string& other : {good.substr(0, good.size() - 1), good + "x", std::string()}) {
      put_bytes(file, other);
      REQUIRE_THAT(check(), ContainsSubstring(name));
    }
    fs::remove(file);
    REQUIRE_THAT(check(), ContainsSubstring(name));
    put_bytes(file, good);
  }
  CHECK(check() == "");
}

TEST_CASE("a manifest of a stranger leads nowhere else, and says what is wrong with it") {
  const TempDir directory;
  const std::string path = directory / "checkpoint";
  save(path, 1);
  put_bytes(directory / "secret", "secret");
  const auto good = nlohmann::json::parse(bytes_of(path + "/manifest.json"));
  put_manifest(path, good);
  REQUIRE(load(path) == 1);
  const auto said = [&](const std::function<void(nlohmann::json&)>& change) {
    auto manifest = good;
    change(manifest);
    put_manifest(path, manifest);
    return error_of<CheckpointError>([&] { CheckpointReader(path).verify(); });
  };
  const nlohmann::json file{{"bytes", 6}, {"crc32", "00000000"}};
  for (const char* name : {"../secret", "/etc/passwd", "..", "", "a/b"})
    CHECK_THAT(said([&](auto& m) { m["files"][name] = file; }), ContainsSubstring("is no name of a checkpoint's file"));
  fs::create_symlink(directory / "secret", path + "/link");
  CHECK_THAT(said([&](auto& m) { m["files"]["link"] = file; }), ContainsSubstring("link: is a link"));
  ::mkfifo((path + "/pipe").c_str(), 0600);
  CHECK_THAT(said([&](auto& m) { m["files"]["pipe"] = file; }), ContainsSubstring("pipe: is no file"));
  CHECK_THAT(said([](auto& m) { m["files"]["empty"]["bytes"] = -1; }), ContainsSubstring("'empty' lacks bytes"));
  CHECK_THAT(said([](auto& m) { m["files"]["empty"]["bytes"] = 1ULL << 60; }),
             ContainsSubstring("cut off or too long"));
  CHECK_THAT(said([](auto& m) { m["files"]["empty"]["crc32"] = "xyz"; }), ContainsSubstring("crc32 of 'empty'"));
  CHECK_THAT(said([](auto& m) { m["files"] = 3; }), ContainsSubstring("files is no object"));
  CHECK_THAT(said([](auto& m) { m["info"]["version"] = 3; }), ContainsSubstring("info 'version' is no text"));
  CHECK_THAT(said([](auto& m) { m["version"] = 2; }), ContainsSubstring("is of version 2"));
  CHECK_THAT(said([](auto& m) { m["version"] = "new"; }), ContainsSubstring("no whole number as version"));
  CHECK_THAT(said([](auto& m) { m["format"] = "other"; }), ContainsSubstring("is no manifest"));
  CHECK_THAT(said([](auto& m) {
               for (int depth = 0; depth < 1000; ++depth) m["x"] = nlohmann::json::array({m["x"]});
             }),
             ContainsSubstring("is no manifest"));
  const std::string deep = std::string(1'000'000, '[') + std::string(1'000'000, ']');
  put_bytes(path + "/manifest.json", "{\"format\": \"tandem checkpoint\", \"version\": 1, \"x\": " + deep + "}");
  CHECK_THAT(error_of<CheckpointError>([&] { CheckpointReader reader(path); }), ContainsSubstring("is no manifest"));
  put_bytes(path + "/manifest.json", std::string(100'000, '['));
  CHECK_THAT(error_of<CheckpointError>([&] { CheckpointReader reader(path); }), ContainsSubstring("is no manifest"));
}

TEST_CASE("manifests of noise are errors") {
  const TempDir directory;
  const std::string path = directory / "checkpoint";
  save(path, 1);
  const std::string good = bytes_of(path + "/manifest.json");
  std::mt19937 random(11);
  for (int trial = 0; trial < 3000; ++trial) {
    std::string bad = good;
    for (unsigned change = 0; change <= random() % 8; ++change) {
      const std::size_t at = random() % bad.size();
      switch (random() % 3) {
        case 0: bad[at] = static_cast<char>(random()); break;
        case 1: bad.erase(at, random() % 20); break;
        default: std::swap(bad[at], bad[random() % bad.size()]);
      }
      if (bad.empty()) bad.push_back('{');
    }
    if (bad == good) continue;
    put_bytes(path + "/manifest.json", bad);
    REQUIRE_THAT(error_of<CheckpointError>([&] { CheckpointReader(path).verify(); }),
                 ContainsSubstring("manifest.json"));
  }
}
