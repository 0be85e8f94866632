#include "tandem/io/pickle_file.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include <ATen/Functions.h>
#include <c10/util/Exception.h>
#include <caffe2/serialize/inline_container.h>
#include <torch/csrc/jit/serialization/pickler.h>

#include "io/file_bytes.h"
#include "io/ivalue_tensors.h"
#include "io/unpickle.h"
#include "tandem/core/error.h"

namespace tandem::io {
namespace {

[[noreturn]] void fail(const std::string& shown, const std::string& problem) {
  throw CheckpointError(shown + ": " + problem);
}

std::string text_of(const std::exception& error) {
  const auto* of_torch = dynamic_cast<const c10::Error*>(&error);
  return of_torch ? of_torch->msg() : error.what();
}

// The same elements on the CPU, in a storage that has no others: storages are written whole.
at::Tensor alone_in_storage(const at::Tensor& tensor) {
  at::Tensor dense = tensor.detach().cpu();
  if (!dense.is_non_overlapping_and_dense()) dense = dense.contiguous();
  if (dense.storage_offset() == 0 && dense.storage().nbytes() == dense.nbytes()) return dense;
  return at::from_blob(
      const_cast<void*>(dense.const_data_ptr()), dense.sizes(), dense.strides(), [dense](void*) {}, dense.options());
}

}  // namespace

void write_pickle(const WriteBytes& write, const std::string& shown, const c10::IValue& value) {
  std::string pickle;
  std::vector<at::Tensor> tensors;
  try {
    torch::jit::Pickler pickler([&](const char* data, std::size_t bytes) { pickle.append(data, bytes); }, nullptr,
                                nullptr, nullptr, nullptr, /*tag_aggregates=*/false);
    pickler.protocol();
    pickler.pushIValue(map_tensors(value, alone_in_storage));
    pickler.stop();
    tensors = pickler.tensorData();
    // LibTorch's archive ends itself when it is destroyed, and so may never see an exception.
    std::exception_ptr failure;
    caffe2::serialize::PyTorchStreamWriter archive([&](const void* data, std::size_t bytes) {
      try {
        if (!failure) write(data, bytes);
      } catch (...) {
        failure = std::current_exception();
      }
      return bytes;
    });
    archive.writeRecord("data.pkl", pickle.data(), pickle.size());
    archive.writeRecord("byteorder", "little", 6);
    for (std::size_t i = 0; i < tensors.size() && !failure; ++i)
      archive.writeRecord("data/" + std::to_string(i), tensors[i].storage().data(), tensors[i].storage().nbytes());
    archive.writeEndOfFile();
    if (failure) std::rethrow_exception(failure);
  } catch (const CheckpointError&) {
    throw;
  } catch (const std::exception& error) {
    fail(shown, "cannot be written: " + text_of(error));
  }
}

namespace {

// The bytes of a file, at any place.
class BytesAdapter final : public caffe2::serialize::ReadAdapterInterface {
 public:
  explicit BytesAdapter(const at::Tensor& file) : file_(file) {}
  std::size_t size() const override { return file_.nbytes(); }
  std::size_t read(std::uint64_t position, void* to, std::size_t bytes, const char*) const override {
    if (position >= size()) return 0;
    bytes = std::min(bytes, static_cast<std::size_t>(size() - position));
    std::memcpy(to, static_cast<const char*>(file_.const_data_ptr()) + position, bytes);
    return bytes;
  }

 private:
  const at::Tensor file_;
};

// The records of the archive.
class Archive {
 public:
  explicit Archive(const at::Tensor& file) : file_(file), reader_(std::make_shared<BytesAdapter>(file)) {
    // Records are not compressed: together they are no larger than the file.
    std::uint64_t all = 0;
    for (const std::string& name : reader_.getAllRecords()) {
      const std::uint64_t bytes = reader_.getRecordSize(name);
      if (bytes > file.nbytes() - all) throw UnpickleError("names records that are larger than the file");
      all += bytes;
    }
  }

  std::string text(const std::string& name, std::uint64_t most) {
    if (!reader_.hasRecord(name)) throw UnpickleError("has no " + name + ", which torch.save writes");
    std::string text(reader_.getRecordSize(name), '\0');
    if (text.size() > most) throw UnpickleError("has a " + name + " of " + std::to_string(text.size()) + " bytes");
    reader_.getRecord(name, text.data(), text.size());
    return text;
  }

  bool is_big_endian() { return reader_.hasRecord("byteorder") && text("byteorder", 16) == "big"; }

  // `bytes`: that it must have.
  at::Tensor storage(const std::string& key, std::uint64_t bytes) {
    const std::string name = "data/" + key;
    if (const auto known = storages_.find(name); known != storages_.end()) {
      if (known->second.nbytes() != bytes) throw UnpickleError("has the storage " + name + " with two sizes");
      return known->second;
    }
    if (!reader_.hasRecord(name)) throw UnpickleError("has no " + name + ", which a tensor needs");
    if (reader_.getRecordSize(name) != bytes)
      throw UnpickleError("has " + std::to_string(reader_.getRecordSize(name)) + " bytes of " + name +
                          ", and a tensor needs " + std::to_string(bytes));
    return storages_.emplace(name, read_storage(name, bytes)).first->second;
  }

 private:
  // A record that is stored as it is stays where it lies; others are read as LibTorch does.
  at::Tensor read_storage(const std::string& name, std::uint64_t bytes) {
    constexpr std::uint64_t kLargestElement = 16;
    if (const auto begin = begin_of(name, bytes)) return part_of(file_, *begin, bytes, kLargestElement);
    at::Tensor storage = at::empty(static_cast<std::int64_t>(bytes), at::kByte);
    if (bytes > 0) reader_.getRecord(name, storage.mutable_data_ptr(), static_cast<std::size_t>(bytes));
    return storage;
  }

  // Where the bytes of a stored record begin, by its local header (APPNOTE.TXT of PKWARE, 4.3.7); nothing where that is
  // not to be relied on, or another record lies there too.
  std::optional<std::uint64_t> begin_of(const std::string& name, std::uint64_t bytes) {
    constexpr std::uint64_t kHeader = 30;
    const std::uint64_t header = reader_.getRecordHeaderOffset(name), size = file_.nbytes();
    if (bytes == 0 || header > size || size - header < kHeader) return {};
    const char* const at = static_cast<const char*>(file_.const_data_ptr()) + header;
    const auto number = [at](int place) {
      std::uint16_t value = 0;
      std::memcpy(&value, at + place, sizeof value);
      return value;
    };
    const bool is_stored = std::memcmp(at, "PK\3\4", 4) == 0 && number(6) % 2 == 0 && number(8) == 0;
    const std::uint64_t begin = header + kHeader + number(26) + number(28);
    if (begin > size || !std::string_view(at + kHeader, number(26)).ends_with("/" + name))
      throw UnpickleError("has no " + name + " where its directory says");
    if (!is_stored || bytes > size - begin) return {};
    const auto next = taken_.upper_bound(begin);  // the first that ends behind it
    if (next != taken_.end() && next->second < begin + bytes) return {};
    taken_.emplace(begin + bytes, begin);
    return begin;
  }

  const at::Tensor file_;
  caffe2::serialize::PyTorchStreamReader reader_;
  std::map<std::string, at::Tensor> storages_;    // a copied one is one for all its tensors
  std::map<std::uint64_t, std::uint64_t> taken_;  // parts of the file that storages are, first byte by end
};

}  // namespace

c10::IValue pickle_in(const at::Tensor& file, const std::string& shown) {
  constexpr std::uint64_t kMostPickleBytes = 16 << 20;  // without the tensors
  try {
    Archive archive(file);
    if (archive.is_big_endian()) fail(shown, "is of a machine with another order of bytes");
    return unpickle(archive.text("data.pkl", kMostPickleBytes),
                    [&](const std::string& key, std::uint64_t bytes) { return archive.storage(key, bytes); });
  } catch (const CheckpointError&) {
    throw;
  } catch (const UnpickleError& error) {
    fail(shown, error.what());
  } catch (const std::exception& error) {
    fail(shown, "is no file of torch.save, or damaged: " + text_of(error));
  }
}

c10::IValue read_pickle(const std::string& path, const std::string& shown) {
  const std::string& name = shown.empty() ? path : shown;
  check_is_archive(path, name);
  return pickle_in(load_bytes(path, name), name);
}

}  // namespace tandem::io
