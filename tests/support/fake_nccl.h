#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "comm/nccl/api.h"

namespace tandem::test {

/// NCCL in host memory, with the faults that a test asks for. The ranks' n-th operations are carried out by whoever
/// issues the last of them. Notes what NCCL forbids: calls on communicators that have ended, two calls on one at a
/// time, ending one twice, operations that differ.
class FakeNccl : public comm::nccl::Api {
 public:
  using Comm = comm::nccl::Comm;
  using Op = comm::nccl::Op;
  using Result = comm::nccl::Result;
  using Stream = comm::nccl::Stream;
  using Type = comm::nccl::Type;

  FakeNccl();
  ~FakeNccl() override;

  /// The next calls of `function` (such as "all_reduce") on rank `rank` (-1: any) give `result`.
  void fail(const std::string& function, int rank, Result result);
  /// They do not return until `release`, and then succeed.
  void hang(const std::string& function, int rank);
  void release();
  /// They succeed, but only after so many questions for their state.
  void delay(const std::string& function, int questions);
  /// Ranks' work ends in this state.
  void break_work(Result state);

  /// Called for memory that an operation reads or writes on a stream, when it is issued.
  std::function<void(Stream, const void*, std::size_t bytes, bool write)> on_access;

  /// What was forbidden, one text each.
  std::vector<std::string> violations() const;
  int alive() const;                             ///< communicators that were made and have not ended
  int calls(const std::string& function) const;  ///< so far
  bool is_hanging() const;                       ///< whether a call is

  int version() override { return 22809; }
  std::string error_string(Result) override;
  std::string last_error(Comm) override { return "details of the fake"; }
  Result get_unique_id(comm::nccl::UniqueId&) override;
  Result init_rank(Comm&, int world_size, const comm::nccl::UniqueId&, int rank) override;
  Result async_error(Comm, Result& state) override;
  Result finalize(Comm) override;
  Result destroy(Comm) override;
  Result abort(Comm) override;
  Result group_start() override;
  Result group_end() override;
  Result all_reduce(const void*, void*, std::size_t, Type, Op, Comm, Stream) override;
  Result reduce(const void*, void*, std::size_t, Type, Op, int root, Comm, Stream) override;
  Result broadcast(const void*, void*, std::size_t, Type, int root, Comm, Stream) override;
  Result all_gather(const void*, void*, std::size_t, Type, Comm, Stream) override;
  Result reduce_scatter(const void*, void*, std::size_t, Type, Op, Comm, Stream) override;
  Result send(const void*, std::size_t, Type, int peer, Comm, Stream) override;
  Result receive(void*, std::size_t, Type, int peer, Comm, Stream) override;

 private:
  struct Operation;
  struct Clique;
  struct Rank;
  struct Use;

  Result enter(const std::string& function, int rank, std::unique_lock<std::mutex>& lock);
  Result enqueue(const std::string& function, Comm comm, Operation operation);
  Result end(const std::string& function, Comm comm);
  void issue(Rank& rank, Operation operation);
  void carry_out(Clique& clique);
  void carry_out_messages(Clique& clique);
  void violated(const std::string& text) { violations_.push_back(text); }

  mutable std::mutex mutex_;
  std::condition_variable released_;
  std::uint64_t releases_ = 0;
  int hanging_ = 0;
  Result work_state_ = Result::success;
  std::map<std::pair<std::string, int>, Result> failures_;
  std::set<std::pair<std::string, int>> hangs_;
  std::map<std::string, int> delays_, calls_;
  std::map<std::string, std::shared_ptr<Clique>> cliques_;
  std::vector<std::unique_ptr<Rank>> ranks_;  // of all cliques
  std::vector<std::string> violations_;
};

}  // namespace tandem::test
