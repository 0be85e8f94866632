#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <variant>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

namespace tandem::comm {

class Communicator;

/// Numbers to be logged, that a GPU may still have to compute. To read one at once (`item`) the host waits for the
/// device, which then waits for the host's next launch. Here they are copied to the host behind what the device has to
/// do, and given to a function, in their order, when they have arrived: on a GPU some steps later, on the CPU at once.
/// Those of all ranks take one reduction that nobody waits for. Belongs to one thread.
///
///     comm::DeferredScalars scalars(accelerator.communicator(), accelerator.device());
///     …
///     scalars.add_of_all({loss, norm}, [&, step](const comm::DeferredScalars::Arrived& arrived) {
///       if (accelerator.is_main()) log(step, arrived.sum(0) / arrived.ranks(), arrived.of(0, 1));
///     });
///     scalars.deliver();      // in each step
///     …
///     scalars.deliver_all();  // before a checkpoint, and at the end
class DeferredScalars {
 public:
  /// A number that the host has, or a tensor of one real element on any device.
  using Scalar = std::variant<double, at::Tensor>;

  /// What ranks have given, as float64.
  class Arrived {
   public:
    /// `numbers` has `ranks` rows of as many numbers, and outlives the object.
    Arrived(const double* numbers, std::size_t ranks, std::size_t count) : Arrived(numbers, ranks, count, count) {}

    std::size_t ranks() const { return ranks_; }  ///< how many have given numbers: 1, or all
    std::size_t count() const { return count_; }  ///< how many numbers each has given

    /// The i-th number of a rank; `rank` is 0 for `add`.
    double of(std::size_t rank, std::size_t i) const { return numbers_[rank * row_ + i]; }

    /// The sum of all ranks' i-th numbers, in rank order: the bits of Rank::reduce.
    double sum(std::size_t i) const;

    /// Of each rank's numbers, `count` from `first` on.
    Arrived part(std::size_t first, std::size_t count) const { return {numbers_ + first, ranks_, count, row_}; }

   private:
    Arrived(const double* numbers, std::size_t ranks, std::size_t count, std::size_t row)
        : numbers_(numbers), ranks_(ranks), count_(count), row_(row) {}

    const double* numbers_;
    std::size_t ranks_, count_, row_;
  };

  /// Called on the thread that adds or asks, once for each `add`; what it throws comes out of that call.
  using Deliver = std::function<void(const Arrived&)>;

  /// For numbers of this rank only.
  DeferredScalars();

  /// For those of all ranks too. `communicator`, of tensors on `device`, outlives the object.
  DeferredScalars(Communicator& communicator, c10::Device device);

  ~DeferredScalars();  ///< forgets what was not delivered
  DeferredScalars(const DeferredScalars&) = delete;
  DeferredScalars& operator=(const DeferredScalars&) = delete;

  /// Delivers this rank's numbers, when they are there and after those that were added before. Tensors are of one
  /// device, but for those on the CPU; their values are those that the current stream has at this place.
  void add(const std::vector<Scalar>& scalars, Deliver deliver);

  /// Delivers the numbers of all ranks on each of them. They give as many. Collective, but on GPUs no rank waits for
  /// another; to be called between the same calls of a communicator on all ranks, and not kept over a
  /// find_executable_batch_size that has failed.
  void add_of_all(const std::vector<Scalar>& scalars, Deliver deliver);

  /// Delivers what has arrived. Waits for nothing.
  void deliver();

  /// Delivers all, waiting for the device. Collective after add_of_all.
  void deliver_all();

  /// Delivers what all ranks have given by now, waiting for the device but for no other rank: for a training that an
  /// exception of this rank ends. Not after Cancelled: what the device had to do may have been cut off.
  void deliver_given();

  /// How many were added and are not delivered.
  std::size_t pending() const { return pending_.size(); }

 private:
  struct Pending;
  enum class Wait { no, device, ranks };

  std::unique_ptr<Pending> take_spare(std::size_t count, std::size_t ranks, c10::Device device);
  void start(const std::vector<Scalar>& scalars, std::size_t ranks, c10::Device device, Deliver deliver);
  void deliver_now(const std::vector<Scalar>& scalars, std::size_t ranks, const Deliver& deliver);
  void begin_copies(Wait wait);
  void deliver_as(Wait wait);

  Communicator* const communicator_ = nullptr;  // null: of this rank only
  const c10::Device device_{c10::kCPU};
  std::deque<std::unique_ptr<Pending>> pending_;  // in order
  std::size_t copied_ = 0;                        // how many of these are on their way to the host
  std::vector<std::unique_ptr<Pending>> spare_;   // kept for their memory and events
};

}  // namespace tandem::comm
