// What operators on the fake CUDA do, recorded to be done again: the fake's CUDA graphs.
#pragma once

#include <functional>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>

#include "backend/graph.h"

namespace tandem::test::fake {

/// Operators in their order, to be done again. It undoes what they do while they are recorded.
class Tape final : public Graph {
 public:
  void begin(const at::Generator& own) override;
  void end() override;
  void abandon() noexcept override;
  void replay() override;

  /// An operator is going to write to `tensor`, or to read it.
  void keep(const at::Tensor& tensor);

  /// An operator is done again by this.
  void add(std::function<void()> redo) { operators_.push_back(std::move(redo)); }

 private:
  at::Generator generator_;
  at::Tensor state_;
  std::vector<std::function<void()>> operators_;
  std::set<const void*> known_;
  std::vector<c10::Storage> storages_;
  std::vector<std::pair<std::unique_ptr<at::Tensor>, at::Tensor>> before_;
};

/// What the thread's operators are recorded on; null: they are not.
Tape* tape();

/// To be called by what a stream that is being recorded cannot do. Throws as LibTorch does.
void must_not_be_recorded();

/// While alive, the thread's operators are not recorded.
class NotRecorded {
 public:
  NotRecorded();
  ~NotRecorded();
  NotRecorded(const NotRecorded&) = delete;
  NotRecorded& operator=(const NotRecorded&) = delete;

 private:
  Tape* const tape_;
};

}  // namespace tandem::test::fake
