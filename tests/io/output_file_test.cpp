// Places for output stay what they are.
#include "io/output_file.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <future>
#include <thread>

#include "io/append_file.h"
#include "support/catch.h"
#include "support/child.h"
#include "support/error_of.h"
#include "support/failing_calls.h"
#include "support/file_bytes.h"
#include "support/temp_dir.h"
#include "tandem/core/error.h"
#include "tandem/io/checkpoint_directory.h"
#include "tandem/io/checkpoint_series.h"

using namespace tandem;
using namespace tandem::io;
using namespace tandem::test;
namespace fs = std::filesystem;

namespace {

const std::string kText(300'000, 'x');  // more than a pipe holds

void write_to(const std::string& path, const std::string& text = kText) {
  OutputFile(path).write([&](const WriteBytes& write) {
    write(text.data(), text.size() / 2);
    write(text.data() + text.size() / 2, text.size() - text.size() / 2);
  });
}

std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string rest_of(int fd) {
  std::string all;
  std::array<char, 4096> part;
  for (ssize_t got; (got = ::read(fd, part.data(), part.size())) > 0;)
    all.append(part.data(), static_cast<std::size_t>(got));
  return all;
}

// What `check` and `write` say, which must be the same complaint.
std::string refusal(const std::string& path) {
  const std::string before = error_of<ConfigError>([&] { OutputFile(path).check(); });
  const std::string after = error_of<CheckpointError>([&] { write_to(path); });
  CHECK(before.empty() == after.empty());
  return before;
}

// Runs `body` in a process of its own, as a user without rights if `user` says so. Its result: 0 is success.
int in_child(bool user, const std::function<void()>& body) {
  return end_of(start_child([&] {
    if (user && ::geteuid() == 0 && (::setgid(65534) != 0 || ::setuid(65534) != 0))
      throw std::runtime_error("no other user can be had");
    body();
  }));
}

void require(bool holds, const char* what) {
  if (!holds) throw std::logic_error(what);
}

}  // namespace

TEST_CASE("a file is made, replaced as a whole, and keeps its permissions") {
  const TempDir dir;
  const std::string path = dir / GENERATE(std::string("file"), std::string(255, 'n'));
  OutputFile(path).check();
  CHECK(entries_in(dir.path()) == 0);
  write_to(path, "old");
  fs::permissions(path, fs::perms(0600));
  const int before = ::open(path.c_str(), O_RDONLY);
  CHECK_THROWS_AS(OutputFile(path).write([](const WriteBytes& write) {
    write("half", 4);
    throw std::runtime_error("on fire");
  }),
                  std::runtime_error);
  CHECK(contents(path) == "old");
  OutputFile(path).check();
  write_to(path);
  CHECK(contents(path) == kText);
  CHECK(rest_of(before) == "old");  // who reads it has one of the two
  ::close(before);
  CHECK((fs::status(path).permissions() & fs::perms::all) == fs::perms(0600));
  CHECK(entries_in(dir.path()) == 1);
}

TEST_CASE("a file that is replaced keeps its owner, as far as the user may say") {
  if (::geteuid() != 0) return;  // only root gives files away
  const TempDir dir;
  write_to(dir / "file", "old");
  REQUIRE(::chown((dir / "file").c_str(), 65534, 65533) == 0);
  REQUIRE(::chmod((dir / "file").c_str(), 0640) == 0);
  write_to(dir / "file");
  struct stat status {};
  REQUIRE(::stat((dir / "file").c_str(), &status) == 0);
  CHECK(status.st_uid == 65534U);
  CHECK(status.st_gid == 65533U);
  CHECK((status.st_mode & 0777U) == 0640U);
  CHECK(contents(dir / "file") == kText);
}

TEST_CASE("what a killed writer has left goes at the next write, one that lives is left alone") {
  const TempDir dir;
  const std::string path = dir / GENERATE(std::string("file"), std::string(255, 'n'));
  std::array<int, 2> ready{};
  REQUIRE(::pipe(ready.data()) == 0);
  const pid_t child = start_child([&] {
    OutputFile(path).write([&](const WriteBytes& write) {
      write("half", 4);
      if (::write(ready[1], "1", 1) == 1) ::pause();
    });
  });
  char said = 0;
  REQUIRE(::read(ready[0], &said, 1) == 1);
  write_to(path, "mine");
  CHECK(entries_in(dir.path()) == 2);
  put_bytes(dir / ".tandem-writing-other-1-1", "another file's");
  ::kill(child, SIGKILL);
  CHECK(end_of(child) == 128 + SIGKILL);
  write_to(path);
  CHECK(entries_in(dir.path()) == 2);
  CHECK(fs::exists(dir / ".tandem-writing-other-1-1"));
  CHECK(contents(path) == kText);
  for (const int fd : ready) ::close(fd);
}

TEST_CASE("a file beyond the process's limit is an error and no signal, whoever writes it") {
  const TempDir dir;
  const auto fails = [&](const std::function<void(const std::string& path)>& write) {
    return in_child(false, [&] {
      ::signal(SIGXFSZ, SIG_DFL);
      const rlimit limit{4096, 4096};
      require(::setrlimit(RLIMIT_FSIZE, &limit) == 0, "no limit can be set");
      const std::string error = error_of<Error>([&] { write(dir / "file"); });
      require(error.find("File too large") != std::string::npos || error.find("completely") != std::string::npos,
              error.c_str());
    });
  };
  CHECK(fails([](const std::string& path) { write_to(path); }) == 0);
  CHECK(entries_in(dir.path()) == 0);
  CHECK(fails([](const std::string& path) { write_file(path, kText); }) == 0);
  CHECK(fails([](const std::string& path) {
          AppendFile file(path);
          for (int i = 0; i < 3; ++i) file.append(kText.substr(0, 3000));
        }) == 0);
  CHECK(fails([](const std::string& path) { FileWriter(path + "2").write(kText.data(), kText.size()); }) == 0);
}

TEST_CASE("links are followed, and stay") {
  const TempDir dir;
  fs::create_directory(dir / "there");
  fs::create_directory_symlink("there", dir / "folder");
  const bool dangling = GENERATE(false, true);
  if (!dangling) put_bytes(dir / "there/file", "old");
  const auto link = [&](const std::string& to, const std::string& name) {
    fs::create_symlink(to, dir / name);
    return dir / name;
  };
  for (const std::string& path :
       {link("there/file", "relative"), link(dir / "there/file", "absolute"), link("folder/../there/file", "through"),
        link("relative", "twice"), dir / "folder/file"}) {
    CAPTURE(path, dangling);
    OutputFile(path).check();
    CHECK(fs::exists(dir / "there/file") == !dangling);
    write_to(path);
    CHECK(contents(dir / "there/file") == kText);
    if (fs::path(path).parent_path() == dir.path()) CHECK(fs::is_symlink(path));
    CHECK(entries_in(dir / "there") == 1);
    if (dangling) fs::remove(dir / "there/file");
  }
  CHECK_THAT(refusal(link("nowhere/file", "lost")), ContainsSubstring("nowhere' does not exist"));
  link("two", "one");
  CHECK_THAT(refusal(link("one", "two")), ContainsSubstring("Too many levels of symbolic links"));
}

TEST_CASE("what cannot be written is said before and after, and nothing is left behind") {
  const TempDir dir;
  put_bytes(dir / "file", "text");
  fs::create_directory(dir / "folder");
  const int socket = ::socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  (dir / "socket").copy(address.sun_path, sizeof address.sun_path - 1);
  REQUIRE(::bind(socket, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  CHECK_THAT(refusal(dir / "none/file"), ContainsSubstring("the directory '" + (dir / "none") + "' does not exist"));
  CHECK_THAT(refusal(dir / "file/file"), ContainsSubstring("Not a directory"));
  CHECK_THAT(refusal(dir / "folder"), ContainsSubstring("it is a directory"));
  CHECK_THAT(refusal(dir / "folder/"), ContainsSubstring("it is a directory"));
  CHECK_THAT(refusal(dir / "new/"), ContainsSubstring("does not exist"));
  CHECK_THAT(refusal(dir / "socket"), ContainsSubstring("it is a socket"));
  CHECK_THAT(refusal(dir / std::string(256, 'n')), ContainsSubstring("File name too long"));
  CHECK_THAT(refusal("/dev/fd/999"), ContainsSubstring("descriptor 999 is not open"));
  const int reading = ::open((dir / "file").c_str(), O_RDONLY);
  CHECK_THAT(refusal("/proc/self/fd/" + std::to_string(reading)), ContainsSubstring("is open for reading only"));
  CHECK_THAT(error_of<ConfigError>([] { OutputFile("").check(); }), ContainsSubstring("an empty file name"));
  ::close(reading);
  ::close(socket);
  CHECK(contents(dir / "file") == "text");
  CHECK(entries_in(dir.path()) == 3);
}

TEST_CASE("without the right to write a folder, its files are overwritten and no others made") {
  const TempDir dir;
  fs::permissions(dir.path(), fs::perms(0777));
  for (const char* folder : {"closed", "sticky"}) {
    fs::create_directory(dir / folder);
    put_bytes(dir / folder + "/mine", "old and long");
    fs::permissions(dir / folder + "/mine", fs::perms(0666));
    put_bytes(dir / folder + "/protected", "text");
    fs::permissions(dir / folder + "/protected", fs::perms(0444));
  }
  fs::permissions(dir / "closed", fs::perms(0555));
  fs::permissions(dir / "sticky", fs::perms(01777));  // as /tmp, where another's file cannot be replaced
  if (::geteuid() != 0) fs::permissions(dir / "sticky", fs::perms(0777));
  CHECK(in_child(true, [&] {
          for (const std::string folder : {dir / "closed", dir / "sticky"}) {
            OutputFile(folder + "/mine").check();
            error_of<std::runtime_error>([&] {
              OutputFile(folder + "/mine").write([](const WriteBytes&) { throw std::runtime_error("on fire"); });
            });
            require(contents(folder + "/mine") == "old and long", "a failure before the first byte");
            write_to(folder + "/mine", "new");
            require(contents(folder + "/mine") == "new", "overwritten");
            require(refusal(folder + "/protected").find("Permission denied") != std::string::npos, "a protected file");
            require(contents(folder + "/protected") == "text", "that stays");
          }
          require(refusal(dir / "closed/new").find("Permission denied") != std::string::npos, "a new file");
        }) == 0);
  fs::permissions(dir / "closed", fs::perms(0755));
  CHECK(entries_in(dir / "closed") == 2);
}

TEST_CASE("what is append-only is told before, and folders that are get files and nothing that is renamed") {
  const TempDir dir;
  put_bytes(dir / "file", "text");
  fs::create_directory(dir / "folder");
  const std::string both = " '" + (dir / "file") + "' '" + (dir / "folder") + "'";
  if (std::system(("chattr +a" + both + " 2>/dev/null").c_str()) != 0) {
    WARN("nothing can be made append-only here: not tested");
    return;
  }
  CHECK_THAT(refusal(dir / "file"), ContainsSubstring("it is append-only (chattr +a)"));
  AppendFile log(dir / "file");
  log.append(" and more");
  log.cut(13);  // which is all
  CHECK_THAT(error_of<Error>([&] { log.cut(4); }), ContainsSubstring("cannot be cut: it is append-only (chattr +a)"));
  CHECK(contents(dir / "file") == "text and more");
  OutputFile(dir / "folder/new").check();
  CHECK(entries_in(dir / "folder") == 0);
  for (const std::string& text : {kText, std::string("again")}) {
    write_to(dir / "folder/new", text);
    CHECK(contents(dir / "folder/new") == text);
  }
  const std::string why = "is append-only (chattr +a), and nothing in it can be renamed";
  CHECK_THAT(error_of<CheckpointError>([&] { CheckpointWriter(dir / "folder/state"); }), ContainsSubstring(why));
  CHECK_THAT(error_of<CheckpointError>([&] { CheckpointSeries(dir / "folder"); }), ContainsSubstring(why));
  CHECK(entries_in(dir / "folder") == 1);
  CHECK(std::system(("chattr -a" + both).c_str()) == 0);
}

TEST_CASE("other names of a file that is replaced keep what it was") {
  const TempDir dir;
  put_bytes(dir / "file", "old");
  fs::create_hard_link(dir / "file", dir / "other");
  write_to(dir / "file", "new");
  CHECK(contents(dir / "file") == "new");
  CHECK(contents(dir / "other") == "old");
}

TEST_CASE("devices are written to, and stay devices") {
  for (const char* path : {"/dev/null", "/dev/zero"}) {
    OutputFile(path).check();
    CHECK(OutputFile(path).is_stream());
    write_to(path);
    CHECK(fs::is_character_file(path));
  }
  OutputFile("/dev/full").check();
  CHECK_THAT(error_of<CheckpointError>([] { write_to("/dev/full"); }),
             ContainsSubstring("/dev/full: cannot be written: No space left on device"));
  CHECK(fs::is_character_file("/dev/full"));
  const TempDir dir;
  fs::create_symlink("/dev/null", dir / "link");
  write_to(dir / "link");
  CHECK(fs::read_symlink(dir / "link") == "/dev/null");
  CHECK(fs::is_character_file("/dev/null"));
  if (::mknod((dir / "device").c_str(), S_IFCHR | 0666, makedev(1, 3)) != 0) return;  // root alone may
  if (!std::ofstream(dir / "device")) return;                                         // not on this file system
  write_to(dir / "device");
  CHECK(fs::is_character_file(dir / "device"));
}

TEST_CASE("a FIFO's reader gets everything, is waited for, and may leave") {
  const TempDir dir;
  const std::string path = dir / "fifo";
  REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
  OutputFile(path).check();  // which must not open it: a reader would see the end
  CHECK_THAT(error_of<Cancelled>([&] { OutputFile(path).open([] { return true; }); }), ContainsSubstring("no reader"));
  const auto read_all = [&] {
    const int fd = ::open(path.c_str(), O_RDONLY);
    const std::string all = rest_of(fd);
    ::close(fd);
    return all;
  };
  auto reader = std::async(std::launch::async, read_all);
  OutputFile(path).check();
  write_to(path);
  CHECK(reader.get() == kText);
  OutputFile file(path);
  reader = std::async(std::launch::async, read_all);
  file.open();
  file.write([](const WriteBytes& write) { write("later", 5); });
  CHECK(reader.get() == "later");
  auto leaver = std::async(std::launch::async, [&] {
    const int fd = ::open(path.c_str(), O_RDONLY);
    char byte = 0;
    const bool read_one = ::read(fd, &byte, 1) == 1;
    ::close(fd);
    return read_one;
  });
  CHECK_THAT(error_of<CheckpointError>([&] { write_to(path, std::string(1'000'000, 'x')); }),
             ContainsSubstring("Broken pipe"));  // and no signal
  CHECK(leaver.get());
  sigset_t pending;
  sigpending(&pending);
  CHECK(sigismember(&pending, SIGPIPE) == 0);
  CHECK(fs::is_fifo(path));
}

TEST_CASE("a descriptor of the process gets the bytes where it stands") {
  const TempDir dir;
  const std::string form = GENERATE("/proc/self/fd/", "/dev/fd/", "/proc/thread-self/fd/");
  const auto named = [&](int fd) { return form + std::to_string(fd); };
  const int file = ::open((dir / "file").c_str(), O_RDWR | O_CREAT, 0600);
  REQUIRE(::write(file, "before ", 7) == 7);
  OutputFile(named(file)).check();
  write_to(named(file), "and");
  REQUIRE(::write(file, " after", 6) == 6);
  CHECK(contents(dir / "file") == "before and after");
  fs::remove(dir / "file");
  write_to(named(file), "!");
  ::lseek(file, 0, SEEK_SET);
  CHECK(rest_of(file) == "before and after!");
  ::close(file);
  for (const int flags : {0, O_NONBLOCK}) {
    std::array<int, 2> pipe{};
    REQUIRE(::pipe2(pipe.data(), 0) == 0);
    REQUIRE(::fcntl(pipe[1], F_SETFL, flags) == 0);
    auto reader = std::async(std::launch::async, [&] { return rest_of(pipe[0]); });
    OutputFile(named(pipe[1])).check();
    fs::create_symlink(named(pipe[1]), dir / "link");
    write_to(dir / "link");
    fs::remove(dir / "link");
    ::close(pipe[1]);
    CHECK(reader.get() == kText);
    ::close(pipe[0]);
  }
}

TEST_CASE("/dev/stdout is the standard output, whatever that is") {
  const TempDir dir;
  CHECK(in_child(false, [&] {
          const int file = ::open((dir / "file").c_str(), O_WRONLY | O_CREAT, 0600);
          ::dup2(file, STDOUT_FILENO);
          require(::write(STDOUT_FILENO, "text ", 5) == 5, "before");
          OutputFile output("/dev/stdout");
          output.check();
          output.open();
          require(output.is_open_as(STDOUT_FILENO) && !output.is_open_as(STDIN_FILENO), "is_open_as");
          output.write([](const WriteBytes& write) { write("bytes", 5); });
          ::close(STDOUT_FILENO);
          require(refusal("/dev/stdout").find("descriptor 1 is not open") != std::string::npos, "closed");
        }) == 0);
  CHECK(contents(dir / "file") == "text bytes");
}

TEST_CASE("a full disk leaves the file that is there, a mount point is overwritten") {
  const TempDir dir;
  const std::string disk = dir / "disk";
  fs::create_directory(disk);
  put_bytes(dir / "other", "its bytes");
  // In a mount namespace of its own, which goes with the process.
  const int result = in_child(false, [&] {
    if (::unshare(CLONE_NEWNS) != 0 || ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("none", disk.c_str(), "tmpfs", 0, "size=64k") != 0)
      _exit(77);
    put_bytes(disk + "/file", "old");
    const std::string said = error_of<CheckpointError>([&] { write_to(disk + "/file"); });
    require(said.find("No space left on device") != std::string::npos, "a full disk");
    require(contents(disk + "/file") == "old" && entries_in(disk) == 1, "what was there");
    require(::mount((dir / "other").c_str(), (disk + "/file").c_str(), nullptr, MS_BIND, nullptr) == 0, "mount");
    OutputFile(disk + "/file").check();
    write_to(disk + "/file");
    require(contents(disk + "/file") == kText && entries_in(disk) == 1, "a mount point");
    require(is_mount_point(disk) && is_mount_point(disk + "/file") && !is_mount_point(dir.path()), "is_mount_point");
    require(::mount(nullptr, disk.c_str(), nullptr, MS_REMOUNT | MS_RDONLY, nullptr) == 0, "remount");
    require(refusal(disk + "/new").find("Read-only file system") != std::string::npos, "a read-only disk");
    write_to(disk + "/file", "more");  // on the disk of the other
  });
  if (result == 77)
    WARN("nothing can be mounted here: not tested");
  else
    CHECK(result == 0);
  if (result == 0) CHECK(contents(dir / "other") == "more");
}

TEST_CASE("a file system that cannot sync a directory takes files, one that fails does not") {
  const TempDir dir;
  const std::string call = GENERATE("fsync-directory", "fsync");
  for (const int error : {EINVAL, ENOTSUP, ENOSYS, EBADF, EACCES, EPERM, ENOTTY, EISDIR}) {
    const FailingCall failing(call, kEach, error);
    CAPTURE(call, error);
    write_to(dir / "file");
    CHECK(failing.came());
  }
  for (const int error : {EIO, ENOSPC, EDQUOT}) {
    const FailingCall failing(call, kEach, error);
    CHECK_THAT(error_of<CheckpointError>([&] { write_to(dir / "file"); }), ContainsSubstring(std::strerror(error)));
  }
  CHECK(contents(dir / "file") == kText);
  CHECK(entries_in(dir.path()) == 1);
}
