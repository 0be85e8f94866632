#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>

namespace tandem::nn {

/// Memory that storages of several ranks may refer to.
struct LentMemory {
  at::DataPtr data;
  std::size_t bytes;
};

/// A storage that refers to its memory by LibTorch's copy-on-write: whoever writes to it, by whatever way, or asks
/// LibTorch for a pointer to write through, gives it memory of its own first, which `untouched` tells. It is the
/// storage and not a tensor, so everything that refers to it follows: the tensor, views of it, and what was detached.
/// So several ranks' storages can refer to one memory, and no rank sees what another one writes.
///
/// Its functions are for the thread of the rank that has the storage. Memory is written to only while no other rank
/// reads it. (c10/core/impl/COW.h; each storage has a context of its own, see copy_on_write.h.)
class LentStorage {
 public:
  /// Whether `storage` is ordinary memory of LibTorch's on the CPU. Of other memory somebody else has the address.
  static bool possible(const at::Storage& storage);

  /// Takes over the memory of `storage`, and refers to it.
  explicit LentStorage(at::Storage storage);
  /// Has `storage`, of as many bytes, refer to `memory`.
  LentStorage(at::Storage storage, std::shared_ptr<LentMemory> memory);
  /// Like `end`.
  ~LentStorage();
  LentStorage(const LentStorage&) = delete;
  LentStorage& operator=(const LentStorage&) = delete;

  /// False once somebody has written to the storage, or could.
  bool untouched() const;

  /// Whether `tensor` is on this storage.
  bool holds(const at::Tensor& tensor) const;

  const at::Storage& storage() const { return storage_; }                ///< the storage
  const std::shared_ptr<LentMemory>& memory() const { return memory_; }  ///< what it refers to while it is untouched

  /// Refers to `memory`, which has the same content.
  void refer_to(std::shared_ptr<LentMemory> memory);

  /// Refers to memory that no other storage refers to, with the same content.
  void separate();

  /// The storage has memory of its own, and is an ordinary one again.
  void end();

  /// While alive, what is written to these storages, some perhaps listed twice, is written to their memory, and does
  /// not count as touched.
  class Writing {
   public:
    explicit Writing(std::vector<LentStorage*> storages);
    ~Writing();
    Writing(const Writing&) = delete;
    Writing& operator=(const Writing&) = delete;

   private:
    std::vector<LentStorage*> storages_;
    std::vector<at::DataPtr> lent_;  // what the storages had
  };

 private:
  c10::StorageImpl& impl() const { return *storage_.unsafeGetStorageImpl(); }
  void lend();
  void forget();

  at::Storage storage_;
  std::shared_ptr<LentMemory> memory_;
  at::DataPtr keeper_;  // a second reference, so that the storage's never is the last
};

/// Lends the memory of `tensor`: in place if it has a storage of its own that can be lent, otherwise `tensor` becomes a
/// tensor on a new storage that refers to the same memory.
std::unique_ptr<LentStorage> lend(at::Tensor& tensor);

/// A tensor like `like`, of a new storage that refers to `memory`; `lent` becomes that.
at::Tensor tensor_over(const std::shared_ptr<LentMemory>& memory, const at::Tensor& like,
                       std::unique_ptr<LentStorage>& lent);

}  // namespace tandem::nn
