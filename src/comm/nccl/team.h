// The life of a launch's NCCL communicators: made by the ranks, ended together by the launching thread.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "comm/nccl/api.h"
#include "comm/rank_group.h"
#include "core/launch_end.h"

namespace tandem::comm::nccl {

/// How long NCCL may take.
struct Limits {
  std::chrono::milliseconds init = std::chrono::minutes(2);  ///< to connect all ranks
  std::chrono::milliseconds call =
      std::chrono::seconds(2);  ///< for a call under way, before its communicator is aborted
  std::chrono::milliseconds end = std::chrono::seconds(15);  ///< to end, and then for calls that are still under way
};

/// One communicator a rank of this process, with those of the ranks of all nodes. A rank's thread makes its own and is
/// the only one to call NCCL with it. Nobody may be in a call on a communicator that is aborted, and NCCL frees
/// communicators only when all of a process have been ended: so the ranks' calls pass a gate, and one thread closes it,
/// waits until they are out, and ends all (NCCL's guide, "Fault tolerance").
///
/// Ranks never wait inside NCCL, which does not block; should it hang for all that, `end` gives up after the time limit
/// and leaves a thread behind. Whatever such a thread uses is kept alive by it: hence the shared pointers.
class Team : public std::enable_shared_from_this<Team> {
 public:
  /// `devices` is what those of this process's ranks are called in messages; `group` outlives all calls but `end`.
  Team(std::shared_ptr<Api> api, RankGroup& group, std::vector<std::string> devices, Limits limits = {});

  /// Makes the communicator of `rank`, whose device is the calling thread's current one, and waits for all others.
  /// Collective. Throws CollectiveError with NCCL's reason, or when the ranks are not connected in time; Cancelled.
  void init(int rank);

  /// Makes the NCCL calls in `call` and waits until NCCL has taken them (not until they are done): `name` is for
  /// messages. Throws CollectiveError with NCCL's reason; Cancelled when the token fires.
  void issue(int rank, const char* name, const std::function<Result(Api&, Comm)>& call);

  /// Aborts all communicators and makes new ones, for ranks that have called NCCL differently. Collective.
  void renew(int rank);

  /// Throws what NCCL found to be wrong with the communicator of `rank` since.
  void check(int rank);

  /// After the token has fired: aborts all communicators, so that kernels that wait for others end.
  LaunchEnd abort();

  /// After all ranks have ended well: waits for what is under way and ends all communicators; aborts them where that
  /// fails.
  LaunchEnd finish();

 private:
  enum class Place : int { outside, inside, abandoned };

  struct Rank {
    std::atomic<Place> place{Place::outside};
    std::atomic<Comm> comm{nullptr};  // written by the rank's thread, before it is outside again
    std::string details;              // NCCL's about the rank's last failed call; its thread's
  };

  Rank& own(int rank);
  const std::string& device_of(int rank) const;
  Result pass_gate(int rank, const std::function<Result()>& call);
  Result state_of(Comm comm);
  Result await(int rank, Result result, std::chrono::steady_clock::time_point limit);
  void require(int rank, const char* name, Result result);
  std::string failure(int rank, const char* name, Result result);
  bool all_outside(std::chrono::milliseconds limit);
  void abandon_stuck(LaunchEnd& ending);
  LaunchEnd end(const char* what, Result (Team::*how)());
  std::string within_limit(const char* what, Result (Team::*how)());
  Result abort_all();
  Result finish_all();
  Result finalize_all();
  Result end_each(Result (Api::*how)(Comm));

  const std::shared_ptr<Api> api_;
  RankGroup& group_;
  const int first_rank_;
  const std::vector<std::string> devices_;
  const Limits limits_;
  std::atomic<bool> closed_{false};
  std::vector<Rank> ranks_;  // of this process
};

}  // namespace tandem::comm::nccl
