// What a part of a forward pass writes to, so that it can be computed again.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>
#include <c10/core/TensorImpl.h>
#include <c10/util/intrusive_ptr.h>

namespace tandem::nn {

/// Memory that was there before a part of a forward pass and that it has written to, as buffers of modules are: with
/// what it held then.
class WrittenTensors {
 public:
  /// Whether the part has written to the tensor's memory.
  bool has(const at::Tensor& tensor) const;

  /// While alive, the memory holds what it held before the part; afterwards what it held meanwhile, also by the count
  /// of its tensors' versions.
  class AsBefore {
   public:
    explicit AsBefore(const WrittenTensors& written);
    ~AsBefore();
    AsBefore(const AsBefore&) = delete;
    AsBefore& operator=(const AsBefore&) = delete;

   private:
    struct Now {
      c10::Storage storage;
      at::Tensor bytes;
      std::vector<std::pair<c10::VariableVersion, std::uint32_t>> versions;
    };
    std::vector<Now> now_;
  };

 private:
  friend class WriteWatch;
  using WeakStorage = c10::weak_intrusive_ptr<c10::StorageImpl>;
  struct Written {
    WeakStorage storage;
    at::Tensor bytes;                            // before
    std::vector<c10::VariableVersion> versions;  // of tensors that were written through
  };
  std::unordered_map<const c10::StorageImpl*, Written> all_;
};

/// While alive, what the calling thread's operators write to is noted in `written`, by this watch and those around it.
/// Memory that is made meanwhile is not. Operators throw ConfigError where they write to a tensor whose graph is older
/// than the watch. Destroyed on the thread that made it, in the opposite order.
class WriteWatch {
 public:
  explicit WriteWatch(WrittenTensors& written);
  ~WriteWatch();
  WriteWatch(const WriteWatch&) = delete;
  WriteWatch& operator=(const WriteWatch&) = delete;

  /// While alive, no watch notes anything.
  class Pause {
   public:
    Pause();
    ~Pause();
    Pause(const Pause&) = delete;
    Pause& operator=(const Pause&) = delete;

   private:
    WriteWatch* paused_;
  };

  void about_to_write(const at::Tensor& tensor, const char* operation);
  void made(const at::Tensor& tensor);

 private:
  void note(const at::Tensor& tensor);

  WrittenTensors& written_;
  WriteWatch* around_;
  std::uint64_t began_;  // nodes of graphs are numbered
  std::unordered_map<const c10::StorageImpl*, WrittenTensors::WeakStorage> made_;
};

}  // namespace tandem::nn
