// Loaders and files beside a process that uses oneTBB itself, and limits it.
#include <fcntl.h>
#include <oneapi/tbb/global_control.h>
#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/task_arena.h>
#include <oneapi/tbb/task_group.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <future>
#include <map>
#include <mutex>

#include <ATen/Parallel.h>

#include "backend/lent_threads.h"
#include "data/loader_base.h"
#include "io/in_threads.h"
#include "support/index_data.h"
#include "support/temp_dir.h"

using namespace tandem;
using namespace tandem::test;

namespace {

constexpr auto kLimit = tbb::global_control::max_allowed_parallelism;

std::size_t limit() { return tbb::global_control::active_value(kLimit); }

std::string name_of_this_thread() {
  std::array<char, 16> name{};
  pthread_getname_np(pthread_self(), name.data(), name.size());
  return name.data();
}

// Bytes that are written to standard error while it lives.
class StandardError {
 public:
  StandardError() : before_(::dup(2)) {
    const int file = ::open((directory_ / "stderr").c_str(), O_WRONLY | O_CREAT, 0600);
    ::dup2(file, 2);
    ::close(file);
  }
  ~StandardError() {
    ::dup2(before_, 2);
    ::close(before_);
  }
  std::uintmax_t bytes() const { return std::filesystem::file_size(directory_ / "stderr"); }

 private:
  TempDir directory_;
  const int before_;
};

// Sample i is i, and is not there before `released` is set.
struct Late : Indices {
  std::shared_ptr<std::atomic<bool>> released = std::make_shared<std::atomic<bool>>(false);
  using Indices::Indices;
  at::Tensor get_batch(c10::ArrayRef<std::size_t> indices) override {
    while (!*released && !work_is_unwanted()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return Indices::get_batch(indices);
  }
};

// Sample i is i, read with oneTBB; no thread reads a second one while it waits for that.
struct InParallel : torch::data::datasets::Dataset<InParallel, at::Tensor> {
  std::shared_ptr<std::atomic<int>> reads_within_reads = std::make_shared<std::atomic<int>>(0);
  at::Tensor get(std::size_t index) override {
    thread_local bool reading = false;
    if (std::exchange(reading, true)) *reads_within_reads += 1;
    tbb::parallel_for(0, 8, [](int) { std::this_thread::sleep_for(std::chrono::microseconds(50)); });
    reading = false;
    return at::scalar_tensor(static_cast<std::int64_t>(index), at::kLong);
  }
  std::optional<std::size_t> size() const override { return 300; }
};

}  // namespace

TEST_CASE("a read that waits for long keeps no other loader from its threads, whatever the process allows oneTBB") {
  const std::size_t allowed = GENERATE(0, 1, 2, 3);  // 0: no limit
  CAPTURE(allowed);
  const StandardError standard_error;
  std::optional<tbb::global_control> control;
  if (allowed) control.emplace(kLimit, allowed);
  const auto seen = on_ranks<Epoch>(1, [](Accelerator& accelerator) {
    const Late late(6);
    auto waiting = accelerator.prepare(data::DataLoader(late, {.batch_size = 1, .workers = 3}));
    auto other = accelerator.prepare(data::DataLoader(Indices(6), {.batch_size = 1, .workers = 3}));
    loader_of(waiting).start();
    Epoch epoch = one_epoch(other);
    *late.released = true;
    while (auto batch = loader_of(waiting).next()) epoch.push_back(list(batch.as<at::Tensor>()));
    return epoch;
  })[0];
  CHECK(seen == Epoch{{0}, {1}, {2}, {3}, {4}, {5}, {0}, {1}, {2}, {3}, {4}, {5}});
  CHECK(standard_error.bytes() == 0);
}

TEST_CASE("launches within tasks that hold all threads of oneTBB's have their batches and files") {
  const tbb::global_control control(kLimit, 2);
  tbb::task_arena host(2, 1);
  std::vector<std::vector<Epoch>> epochs;
  std::atomic<int> files{0};
  std::promise<void> done;
  host.enqueue([&] {
    epochs = epochs_on_ranks(2, data::DataLoader(Indices(40), {.batch_size = 2, .workers = 3}));
    io::in_threads(9, [&](std::size_t) { files += 1; });
    done.set_value();
  });
  done.get_future().get();
  CHECK(epochs == epochs_on_ranks(2, data::DataLoader(Indices(40), {.batch_size = 2})));
  CHECK(files == 9);
}

TEST_CASE("a dataset that uses oneTBB itself is given no other read meanwhile") {
  const InParallel dataset;
  const auto seen = epochs_on_ranks(2, data::DataLoader(dataset, {.batch_size = 3, .workers = 4}));
  CHECK(seen == epochs_on_ranks(2, data::DataLoader(Indices(300), {.batch_size = 3})));
  CHECK(*dataset.reads_within_reads == 0);
}

TEST_CASE("lent threads have the name and the one intra-op thread of a worker, and are given back as they were") {
  const tbb::global_control control(kLimit, 4);
  const std::string before = name_of_this_thread();
  int intra_op_threads = 0;
  std::thread([&] { intra_op_threads = at::get_num_threads(); }).join();
  std::mutex mutex;
  std::map<std::thread::id, std::string> lent, later;
  {
    LentThreads threads(2, "loader", 1, [&] {
      std::unique_lock lock(mutex);
      lent[std::this_thread::get_id()] = name_of_this_thread() + ", " + std::to_string(at::get_num_threads());
      while (lent.size() < 2) {
        lock.unlock();
        std::this_thread::yield();
        lock.lock();
      }
    });
    threads.call();
    threads.call();
    for (std::unique_lock lock(mutex); lent.size() < 2; lock.lock()) {
      lock.unlock();
      std::this_thread::yield();
    }
  }
  CHECK(name_of_this_thread() == before);
  std::set<std::string> names;
  for (const auto& [id, name] : lent) names.insert(name);
  CHECK(names == std::set<std::string>{"loader 1, 1", "loader 2, 1"});

  tbb::task_arena host(3, 0);
  const auto all_seen = [&] {
    const std::lock_guard lock(mutex);
    return std::all_of(lent.begin(), lent.end(), [&](const auto& one) { return later.count(one.first) > 0; });
  };
  while (!all_seen()) {
    std::atomic<int> left{3};
    for (int i = 0; i < 3; ++i)
      host.enqueue([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        {
          const std::lock_guard lock(mutex);
          later[std::this_thread::get_id()] = name_of_this_thread() + ", " + std::to_string(at::get_num_threads());
        }
        left -= 1;
      });
    while (left > 0) std::this_thread::yield();
  }
  for (const auto& [id, name] : lent) CHECK(later[id] == "tbb, " + std::to_string(intra_op_threads));
}

TEST_CASE("the limit of oneTBB's threads is higher by all that are asked for, and is the process's own afterwards") {
  const std::size_t before = limit();
  {
    const LentThreads three(3, "loader", 1, [] {});
    CHECK(limit() == before + 3);
    {
      const LentThreads five(5, "loader", 1, [] {});
      CHECK(limit() == before + 8);
    }
    CHECK(limit() == before + 3);
    const tbb::global_control control(kLimit, 2);
    const LentThreads more(5, "loader", 1, [] {});
    CHECK(limit() == 2);
  }
  CHECK(limit() == before);
}

TEST_CASE("calls that no thread has come for are waited for by nobody, and come to nothing") {
  const tbb::global_control control(kLimit, 2);
  tbb::task_arena host(1, 0);
  std::atomic<bool> release{false};
  std::atomic<int> held{0}, calls{0}, done{0};
  host.enqueue([&] {
    held = 1;
    release.wait(false);
  });
  while (held == 0) std::this_thread::yield();  // the one thread that there may be
  for (int i = 0; i < 3; ++i) {
    LentThreads threads(2, "loader", 1, [&] { calls += 1; });
    threads.call();
    threads.call();
    threads.call();
  }
  release = true;
  release.notify_all();
  for (int i = 0; i < 20; ++i) host.enqueue([&] { done += 1; });
  while (done < 20) std::this_thread::yield();
  CHECK(calls == 0);
}

TEST_CASE("files are all worked on, once each, in a task of the process's that is cancelled meanwhile too") {
  const std::size_t allowed = GENERATE(0, 1, 2);
  std::optional<tbb::global_control> control;
  if (allowed) control.emplace(kLimit, allowed);
  for (const std::size_t count : {0, 1, 2, 3, 50}) {
    CAPTURE(allowed, count);
    std::vector<std::atomic<int>> times(count);
    tbb::task_group group;
    group.run_and_wait([&] {
      group.cancel();
      io::in_threads(count, [&](std::size_t i) { times[i] += 1; });
    });
    for (const auto& one : times) CHECK(one == 1);
  }
  std::atomic<int> after{0};
  const auto fail_at_the_fourth = [&](std::size_t i) {
    if (i == 3) throw std::runtime_error("file 3");
    if (i > 3) after += 1;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  };
  CHECK_THROWS_WITH(io::in_threads(1000, fail_at_the_fourth), "file 3");
  CHECK(after < 500);
}
