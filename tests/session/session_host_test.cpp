// What a host sees of a session, and what it does not.
#include <cfenv>
#include <cmath>
#include <thread>
#include <vector>

#include <ATen/Context.h>
#include <ATen/Parallel.h>

#include "session/session_training.h"
#include "tandem/session/session.h"

using namespace tandem;
using namespace tandem::test;

namespace {

// What LibTorch and the processor are set to, for this thread and for the process.
at::Tensor settings_of_this_thread() {
  const at::Context& context = at::globalContext();
  const at::Tensor denormal = at::full({64}, 1e-40) * 1;
  return at::tensor(std::vector<std::int64_t>{
      at::get_num_threads(), at::GradMode::is_enabled(), std::fegetround(),
      denormal.count_nonzero().item<std::int64_t>(), static_cast<std::int64_t>(at::get_default_dtype_as_scalartype()),
      context.allowTF32CuBLAS(), context.benchmarkCuDNN(), context.deterministicAlgorithms()});
}

}  // namespace

TEST_CASE("other threads that use LibTorch during a session get the bits that they get without one") {
  const auto compute = [] {
    at::manual_seed(7);
    std::vector<at::Tensor> results;
    for (int i = 0; i < 50; ++i) {
      at::Tensor a = at::rand({64, 64}).requires_grad_();
      at::Tensor b = at::dropout(a.matmul(at::randn({64, 64})), 0.3, true).sin().sum();
      b.backward();
      results.push_back(a.grad());
    }
    results.push_back(settings_of_this_thread());
    return results;
  };
  const auto alone = compute();
  Session session;
  session.start(ranks(2), body({}));
  wait_for_step(session, 1);
  std::vector<std::vector<at::Tensor>> during(2);
  during[0] = compute();
  std::thread other([&] { during[1] = compute(); });  // the default generator is one for all threads but ranks
  other.join();
  session.cancel();
  session.wait();
  during.push_back(compute());
  for (const auto& results : during)
    for (std::size_t i = 0; i < alone.size(); ++i) CHECK(at::equal(results[i], alone[i]));
}

TEST_CASE("progress tells epoch, step, loss and time left") {
  Session session;
  bool told = false, beyond = false;
  session.start(ranks(2), [&](Accelerator& accelerator) {
    accelerator.set_total_steps(60);
    body({.epochs = 10, .in_step = [] { std::this_thread::sleep_for(3ms); }})(accelerator);
  });
  while (session.progress().state != SessionState::ended) {
    const Progress progress = session.progress();
    told = told || (progress.step > 0 && progress.steps_per_second > 0 && progress.seconds_left >= 0 &&
                    progress.epoch_steps == 6 && progress.total_steps == 60 && std::isfinite(progress.loss));
    beyond = beyond || progress.epoch_step > 6 || progress.step > 60;
  }
  session.wait();
  CHECK_FALSE(beyond);
  CHECK(told);
  CHECK(session.progress().step == 60);
  CHECK(session.progress().epoch == 9);
}
