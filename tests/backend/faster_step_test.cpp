// What is faster, called or replayed steps, is found out and kept, on a fake CUDA.
#include "support/compiled_training.h"

using namespace tandem;
using namespace tandem::test;
using namespace tandem::test::compiled;
using Catch::Matchers::ContainsSubstring;

namespace {

constexpr std::int64_t kMeasured = 10;  // of each kind

// While alive, steps take so much longer when they are called, or replayed.
class Delays {
 public:
  explicit Delays(bool replayed) {
    if (replayed) fake::set_replay_delay(std::chrono::milliseconds(20));
  }
  ~Delays() { fake::set_replay_delay(std::chrono::milliseconds(0)); }
};

at::Tensor slowly_called_step(Trainee& t, const at::Tensor& in, const at::Tensor& out) {
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  return plain_step(t, in, out);
}

}  // namespace

TEST_CASE("what is faster is kept, and has the results of called steps") {
  const std::vector<int> devices = GENERATE(std::vector<int>{0}, std::vector<int>{0, 0, 0}, std::vector<int>{0, 1});
  const bool replays = GENERATE(true, false);
  CAPTURE(devices, replays);
  fake::reset();
  const Machine machine;
  const Delays delays(!replays);
  const Call with_schedule = [](Trainee& t, const at::Tensor& in, const at::Tensor& out, const auto& step) {
    const at::Tensor loss = step(in, out);
    t.inner.param_groups()[0].options().set_lr(0.01 / (t.call + 1));
    return loss;
  };
  const Program program{.dropout = 0.3,
                        .step = replays ? slowly_called_step : plain_step,
                        .call = with_schedule,
                        .samples = 8 * 15 * static_cast<std::int64_t>(devices.size()),
                        .options = {.keep_faster = true}};
  const Run called = train(machine.config(devices), program, false),
            compiled = train(machine.config(devices), program, true);
  CHECK(compiled.same_training(called));
  REQUIRE(compiled.times);
  CHECK(compiled.times->replays == replays);
  CHECK((compiled.times->called > compiled.times->replayed) == replays);
  const std::int64_t calls = 30, before = kRehearsals + kMeasured;
  CHECK(compiled.replays == (replays ? calls - before : 1 + kMeasured));
  CHECK_THAT(compiled.reason, ContainsSubstring(replays ? "" : "not faster by a twentieth"));
  CHECK(compiled.reason.empty() == replays);
  machine.check_clean();
}

TEST_CASE("a step that changes while it is measured is measured anew") {
  fake::reset();
  const Machine machine;
  const Call with_change = [](Trainee& t, const at::Tensor& in, const at::Tensor& out, const auto& step) {
    if (t.call == kRehearsals + kMeasured + 5) t.net->parameters().front().requires_grad_(false);
    return step(in, out);
  };
  const Program program{.call = with_change, .samples = 8 * 30, .options = {.keep_faster = true}};
  const Run called = train(machine.config({0}), program, false), compiled = train(machine.config({0}), program, true);
  CHECK(compiled.same_training(called));
  CHECK(compiled.times);
  CHECK(compiled.replays >= 5 + 1 + kMeasured);
}

TEST_CASE("nothing is measured where replays have no room, or might have other bits") {
  struct Case {
    std::string reason;
    std::vector<int> devices{0, 1};
    std::size_t free_bytes = std::size_t{1} << 40;
    Transport transport = Transport::automatic;
  };
  const Case c =
      GENERATE(values<Case>({{"cuda:0 has 0 MB left", {0}, 1000},
                             {"in another order than in called steps", {2, 5, 6}, 1u << 30, Transport::nccl}}));
  CAPTURE(c.reason);
  fake::reset();
  const Machine machine;
  const Program program{.samples = 8 * 15 * 3, .options = {.keep_faster = true}};
  const auto config = machine.config(c.devices, c.transport);
  const Run called = train(config, program, false);
  fake::set_free_memory(c.free_bytes);
  const Run compiled = train(config, program, true);
  fake::set_free_memory(std::size_t{1} << 40);
  CHECK(compiled.same_training(called));
  CHECK_FALSE(compiled.times);
  CHECK(compiled.replays == 0);
  CHECK_THAT(compiled.reason, ContainsSubstring(c.reason));
  machine.check_clean();
}
