// For LD_PRELOAD: a file system that says of directories that it cannot sync them, with the error of
// TANDEM_TEST_SYNC_ERROR.
#include <dlfcn.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdlib>

extern "C" int fsync(int fd) {
  static auto* const call = reinterpret_cast<int (*)(int)>(dlsym(RTLD_NEXT, "fsync"));
  const char* const error = std::getenv("TANDEM_TEST_SYNC_ERROR");
  struct stat status {};
  if (!error || fstat(fd, &status) != 0 || !S_ISDIR(status.st_mode)) return call(fd);
  errno = std::atoi(error);
  return -1;
}
