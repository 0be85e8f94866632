#include "mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "tandem/core/error.h"

namespace tandem::data {
namespace {

[[noreturn]] void fail(const std::string& path, const std::string& problem) { throw DataError(path + ": " + problem); }

}  // namespace

MappedFile::MappedFile(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) fail(path, "does not exist");
  if (!std::filesystem::is_regular_file(path, error)) fail(path, "is no file");  // opening a pipe could wait forever
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) fail(path, std::string("cannot be opened: ") + std::strerror(errno));
  struct stat status {};
  const bool known = ::fstat(file, &status) == 0;
  if (status.st_size > 0)
    data_ = ::mmap(nullptr, static_cast<std::size_t>(status.st_size), PROT_READ, MAP_SHARED, file, 0);
  const int problem = errno;
  ::close(file);  // the mapping stays
  if (known && status.st_size == 0) fail(path, "is empty");
  if (!known || data_ == MAP_FAILED) fail(path, std::string("cannot be mapped into memory: ") + std::strerror(problem));
  size_ = status.st_size;
}

MappedFile::~MappedFile() { ::munmap(data_, static_cast<std::size_t>(size_)); }

}  // namespace tandem::data
