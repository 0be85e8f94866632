#include "core/step_gate.h"

#include <algorithm>
#include <exception>
#include <utility>

namespace tandem {
namespace {

// A place in a rank's program: windows closed (28 bits), micro-batches begun since (16), and batches taken since (20).
// Ranks may have different numbers of micro-batches in a window. More than fit count as windows or micro-batches, which
// is the same for all ranks that do the same.
constexpr std::uint64_t kMicroBatch = std::uint64_t{1} << 20;
constexpr std::uint64_t kWindow = kMicroBatch << 16;

// Ranks that wait for each other do so for microseconds, but for those who wait for somebody at the gate.
constexpr auto kPatience = std::chrono::milliseconds(20);

}  // namespace

struct alignas(64) StepGate::Rank {
  std::atomic<std::uint64_t> position{0};
  // Guarded by the gate's mutex.
  Place place = Place::running;
  std::uint64_t last_turn = 0;
};

StepGate::StepGate(int ranks, CancelToken& token, std::function<bool(int)> waits)
    : size_(ranks),
      token_(token),
      waits_(std::move(waits)),
      ranks_(std::make_unique<Rank[]>(static_cast<std::size_t>(ranks))),
      subscription_(token, [this] {
        const std::lock_guard lock(mutex_);
        changed_.notify_all();
      }) {}

StepGate::~StepGate() = default;

void StepGate::pass_micro_batch(int rank) {
  const std::uint64_t before = ranks_[rank].position.load(std::memory_order_relaxed);  // this thread's own
  pass(rank, (before / kMicroBatch + 1) * kMicroBatch);
}

void StepGate::pass_batch(int rank) { pass(rank, ranks_[rank].position.load(std::memory_order_relaxed) + 1); }

void StepGate::close_window(int rank) noexcept {
  std::atomic<std::uint64_t>& position = ranks_[rank].position;
  // relaxed: it is still before the gate that it passes next, where it looks whether that is closed.
  position.store((position.load(std::memory_order_relaxed) / kWindow + 1) * kWindow, std::memory_order_relaxed);
}

void StepGate::pass(int rank, std::uint64_t position) {
  // seq_cst, as in `close`: either the rank sees that the gate is closed, or who closes it sees the rank beyond it.
  ranks_[rank].position.store(position, std::memory_order_seq_cst);
  if (!closed_.load(std::memory_order_seq_cst)) return;
  std::unique_lock lock(mutex_);
  if (closed_.load(std::memory_order_relaxed) && position >= target_) park(rank, lock);
}

void StepGate::park(int rank, std::unique_lock<std::mutex>& lock) {
  Rank& self = ranks_[rank];
  move(rank, Place::parked);
  const std::uint64_t before = openings_;
  bool stuck = false;
  while (openings_ == before) {
    if (token_.cancelled()) {
      lock.unlock();
      token_.throw_cancelled();
    }
    if (task_ && self.last_turn != turn_) {
      take_part(rank, lock);
    } else if (all_stand()) {
      changed_.wait(lock);
    } else if (changed_.wait_for(lock, kPatience) == std::cv_status::timeout) {
      // Twice in a row, since who has been waiting may have been called in the meantime.
      if (stuck && are_waited_for()) open((furthest() / kMicroBatch + 1) * kMicroBatch);
      stuck = are_waited_for();
    }
  }
}

void StepGate::take_part(int rank, std::unique_lock<std::mutex>& lock) {
  ranks_[rank].last_turn = turn_;
  std::optional<Task> task = task_;
  const Standing standing = standing_;
  const bool runs = runs_;
  lock.unlock();
  bool agrees = true;
  std::exception_ptr error;
  try {
    if (runs)
      task->run(rank, standing);
    else
      agrees = !task->may_run || task->may_run(rank, standing);
  } catch (...) {
    error = std::current_exception();
  }
  task.reset();  // what it holds is its owner's, and not to be destroyed under the lock
  lock.lock();
  all_agree_ = all_agree_ && agrees;
  if (--missing_ == 0) finish_task(lock);
  if (error) {
    move(rank, Place::running);
    std::rethrow_exception(error);
  }
}

// All have had their turn.
void StepGate::finish_task(std::unique_lock<std::mutex>& lock) {
  if (!runs_ && all_agree_) return begin_turn(true);
  std::optional<Task> done = std::exchange(task_, std::nullopt);
  if (!runs_) {
    later_.push_back(std::move(*done));
    return decide();
  }
  decide();
  lock.unlock();
  done.reset();
  lock.lock();
}

void StepGate::begin_turn(bool runs) {
  runs_ = runs;
  all_agree_ = true;
  turn_ += 1;
  missing_ = count(Place::parked);
  changed_.notify_all();
}

void StepGate::leave(int rank) noexcept {
  const std::lock_guard lock(mutex_);
  move(rank, Place::left);
}

void StepGate::step_aside(int rank) {
  const std::lock_guard lock(mutex_);
  move(rank, Place::aside);
}

void StepGate::come_back(int rank) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !task_ || token_.cancelled(); });
  std::uint64_t furthest = 0;
  for (int other = 0; other < size_; ++other)
    if (ranks_[other].place != Place::left)
      furthest = std::max(furthest, ranks_[other].position.load(std::memory_order_seq_cst));
  ranks_[rank].position.store(furthest, std::memory_order_seq_cst);
  move(rank, Place::running);
}

void StepGate::move(int rank, Place place) {
  ranks_[rank].place = place;
  decide();
  changed_.notify_all();
}

void StepGate::add(Task task) {
  const std::lock_guard lock(mutex_);
  tasks_.push_back(std::move(task));
  close();
}

void StepGate::hold() {
  const std::lock_guard lock(mutex_);
  held_ = true;
  close();
}

void StepGate::release() {
  const std::lock_guard lock(mutex_);
  held_ = false;
  decide();
}

bool StepGate::holds() const {
  const std::lock_guard lock(mutex_);
  return held_;
}

void StepGate::close() {
  if (!closed_.exchange(true, std::memory_order_seq_cst)) target_ = furthest() + 1;
  decide();
}

// What those who stand at the gate do next, once all do.
void StepGate::decide() {
  if (task_ || !all_stand()) return;
  if (!tasks_.empty()) {
    task_ = std::move(tasks_.front());
    tasks_.pop_front();
    standing_ = standing();
    begin_turn(false);
  } else if (!held_) {
    tasks_ = std::exchange(later_, {});
    closed_.store(!tasks_.empty(), std::memory_order_seq_cst);
    open(furthest() + 1);
  }
  changed_.notify_all();
}

// Lets all through who stand here; `next` is where they stop next, if the gate stays closed.
void StepGate::open(std::uint64_t next) {
  target_ = next;
  openings_ += 1;
  for (int rank = 0; rank < size_; ++rank)
    if (ranks_[rank].place == Place::parked) ranks_[rank].place = Place::running;
  changed_.notify_all();
}

StepGate::Standing StepGate::standing() const {
  Standing standing{.first = -1, .aside = count(Place::aside), .left = count(Place::left)};
  std::uint64_t place = 0;
  for (int rank = 0; rank < size_; ++rank) {
    if (ranks_[rank].place != Place::parked) continue;
    const std::uint64_t position = ranks_[rank].position.load(std::memory_order_relaxed);
    if (standing.first < 0) {
      standing.first = rank;
      place = position;
    }
    standing.same_place = standing.same_place && position == place;
  }
  return standing;
}

int StepGate::count(Place place) const {
  return static_cast<int>(
      std::count_if(&ranks_[0], &ranks_[size_], [place](const Rank& rank) { return rank.place == place; }));
}

bool StepGate::all_stand() const { return count(Place::running) == 0 && count(Place::parked) > 0; }

bool StepGate::are_waited_for() const {
  if (!waits_) return false;
  for (int rank = 0; rank < size_; ++rank)
    if (ranks_[rank].place == Place::running && !waits_(rank)) return false;
  return !all_stand();
}

// Of those who still come to the gate.
std::uint64_t StepGate::furthest() const {
  std::uint64_t furthest = 0;
  for (int rank = 0; rank < size_; ++rank)
    if (ranks_[rank].place == Place::running || ranks_[rank].place == Place::parked)
      furthest = std::max(furthest, ranks_[rank].position.load(std::memory_order_seq_cst));
  return furthest;
}

}  // namespace tandem
