#include "tandem/io/pickle_file.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string_view>
#include <vector>

#include <ATen/Functions.h>
#include <c10/util/Exception.h>
#include <caffe2/serialize/inline_container.h>

#include "io/checkpoint_error.h"
#include "io/file_bytes.h"
#include "io/old_pickle_file.h"
#include "io/pickle_archive.h"
#include "io/unpickle.h"
#include "tandem/core/error.h"

namespace tandem::io {
namespace {

std::string text_of(const std::exception& error) {
  const auto* of_torch = dynamic_cast<const c10::Error*>(&error);
  return of_torch ? of_torch->msg() : error.what();
}

}  // namespace

void write_archive(const WriteBytes& write, const std::string& shown, const Pickle& pickle) {
  try {
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
    archive.writeRecord("data.pkl", pickle.text.data(), pickle.text.size());
    archive.writeRecord("byteorder", "little", 6);
    for (std::size_t i = 0; i < pickle.storages.size() && !failure; ++i) {
      const at::Tensor elements = pickle.storages[i].dense();
      archive.writeRecord("data/" + std::to_string(i), elements.const_data_ptr(), elements.nbytes());
    }
    archive.writeEndOfFile();
    if (failure) std::rethrow_exception(failure);
  } catch (const CheckpointError&) {
    throw;
  } catch (const std::exception& error) {
    throw_checkpoint_error(shown, "cannot be written: " + text_of(error));
  }
}

void write_pickle(const WriteBytes& write, const std::string& shown, const c10::IValue& value) {
  write_archive(write, shown, pickle_of(value, shown));
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
  try {
    if (is_of_old_format({static_cast<const char*>(file.const_data_ptr()), file.nbytes()})) return old_pickle_in(file);
    Archive archive(file);
    if (archive.is_big_endian()) throw_checkpoint_error(shown, "is of a machine with another order of bytes");
    const std::string text = archive.text("data.pkl", kMostPickleBytes);
    return Unpickled(text).value(
        [&](const std::string& key, std::uint64_t bytes) { return archive.storage(key, bytes); });
  } catch (const CheckpointError&) {
    throw;
  } catch (const UnpickleError& error) {
    throw_checkpoint_error(shown, error.what());
  } catch (const std::exception& error) {
    throw_checkpoint_error(shown, "is no file of torch.save, or damaged: " + text_of(error));
  }
}

NamedTensors pickled_tensors_in(const at::Tensor& file, const std::string& shown) {
  const c10::IValue value = pickle_in(file, shown);
  if (!value.isGenericDict()) throw_checkpoint_error(shown, "is no dict of tensors");
  NamedTensors tensors;
  for (const auto& item : value.toGenericDict()) {
    if (!item.key().isString() || !item.value().isTensor())
      throw_checkpoint_error(shown, "is no dict of tensors by name");
    tensors.emplace_back(item.key().toStringRef(), item.value().toTensor());
  }
  return tensors;
}

namespace {

// A dict that comes again has been seen: it may be within itself.
void add_nested(const c10::IValue& value, const std::string& prefix, std::set<const void*>& seen,
                NamedTensors& tensors) {
  if (!seen.insert(value.internalToPointer()).second) return;
  for (const auto& item : value.toGenericDict()) {
    if (!item.key().isString()) continue;
    const std::string name = prefix + item.key().toStringRef();
    if (item.value().isTensor())
      tensors.emplace_back(name, item.value().toTensor());
    else if (item.value().isGenericDict())
      add_nested(item.value(), name + ".", seen, tensors);
  }
}

}  // namespace

NamedTensors nested_tensors_in(const at::Tensor& file, const std::string& shown) {
  const c10::IValue value = pickle_in(file, shown);
  NamedTensors tensors;
  std::set<const void*> seen;
  if (value.isGenericDict()) add_nested(value, "", seen, tensors);
  if (tensors.empty()) throw_checkpoint_error(shown, "has no dict of tensors by name");
  return tensors;
}

c10::IValue read_pickle(const std::string& path, const std::string& shown) {
  const std::string& name = shown.empty() ? path : shown;
  check_is_pickle_file(path, name);
  return pickle_in(load_bytes(path, name), name);
}

}  // namespace tandem::io
