// The accumulation window by itself: no launch, no model.
#include <limits>
#include <string>
#include <vector>

#include "nn/accumulation_window.h"
#include "support/catch.h"
#include "support/error_of.h"
#include "tandem/core/error.h"
#include "tandem/data/detail/step_info.h"

using namespace tandem;
using namespace tandem::test;
using nn::AccumulationWindow;

namespace {

// Which micro-batches of two epochs of `steps` steps close their window: "01011|…".
std::string closing_steps(AccumulationWindow& window, int steps) {
  std::string seen;
  for (int epoch = 0; epoch < 2; ++epoch) {
    if (epoch > 0) seen += '|';
    data::StepInfo status;
    window.loaders().enter(&status);
    for (int step = 0; step < steps; ++step) {
      status = {.step = step, .last = step + 1 == steps, .last_of_all = step + 1 == steps};
      window.begin_micro_batch(false);
      seen += window.closes_window() ? '1' : '0';
      window.end_micro_batch();
    }
    window.loaders().leave(&status);
  }
  return seen;
}

}  // namespace

TEST_CASE("windows close after as many micro-batches, and with their loader") {
  AccumulationWindow with_loader(2, true), without(2, false), of_one(1, true);
  CHECK(closing_steps(with_loader, 5) == "01011|01011");
  CHECK(closing_steps(without, 5) == "01010|10101");
  CHECK(closing_steps(of_one, 3) == "111|111");
}

TEST_CASE("a window that closes early is corrected by what it is short of") {
  AccumulationWindow window(4, true);
  window.begin_micro_batch(false);
  CHECK(window.divisor() == 4);
  CHECK_FALSE(window.correction());
  window.end_micro_batch();
  window.begin_micro_batch(true);
  CHECK(window.length() == 2);
  CHECK(window.divisor() == 2);
  CHECK(window.correction() == 2.0);  // what came before was divided by 4, not by 2
  window.end_micro_batch();
  CHECK(window.is_between());
}

TEST_CASE("closing, reducing and stepping are three states") {
  AccumulationWindow window(2, true);
  const auto states = [&] {
    return std::vector<bool>{window.closes_window(), window.reduces(), window.acts(), window.pass_is_window()};
  };
  CHECK(states() == std::vector<bool>{true, true, true, true});  // outside of accumulate
  window.begin_micro_batch(false);
  CHECK(states() == std::vector<bool>{false, false, false, false});
  window.set_reduction({.trigger = true});
  CHECK(states() == std::vector<bool>{false, true, false, false});
  window.set_reduction({});
  window.end_micro_batch();
  window.begin_micro_batch(false);
  CHECK(states() == std::vector<bool>{true, true, true, false});
  window.set_reduction({.no_sync = true});
  CHECK(states() == std::vector<bool>{true, false, true, false});
  window.set_reduction({});
  window.train_alone(true);
  CHECK(states() == std::vector<bool>{true, false, true, false});
}

TEST_CASE("a window has means or sums, not both, and its sums become a mean once") {
  AccumulationWindow window(2, true);
  window.begin_micro_batch(false);
  CHECK(window.use_items(3) == 3);
  CHECK(window.has_sums());
  CHECK(error_of<ConfigError>([&] { window.check_mean(); }) ==
        "backward(loss) after backward(loss_sum, items) in one accumulation window");
  window.end_micro_batch();
  window.begin_micro_batch(false);
  CHECK(window.use_items(2) == 5);
  CHECK_FALSE(window.correction());
  window.reduce_items();
  CHECK_FALSE(window.has_sums());
  CHECK_FALSE(error_of<ConfigError>([&] { window.check_items(1); }).empty());
  window.end_micro_batch();
  CHECK(window.items() == 0);
  window.use_mean();
  CHECK_FALSE(error_of<ConfigError>([&] { window.check_items(1); }).empty());
  window.forget_mean();
  for (const double none : {-1.0, std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()})
    CHECK_FALSE(error_of<ConfigError>([&] { window.check_items(none); }).empty());
}

TEST_CASE("an evaluation of a closure is a window of one, within whatever was open") {
  AccumulationWindow window(2, true);
  window.begin_micro_batch(true);
  {
    const AccumulationWindow::Evaluation evaluation(window);
    CHECK(window.in_closure());
    CHECK(window.divisor() == 1);
    CHECK_FALSE(error_of<ConfigError>([&] { window.check_micro_batch(); }).empty());
    window.use_items(4);
  }
  CHECK_FALSE(window.in_closure());
  CHECK(window.in_micro_batch());
  CHECK(window.length() == 1);
  CHECK(window.items() == 0);
  CHECK_FALSE(error_of<ConfigError>([&] { window.check_micro_batch(); }).empty());  // within accumulate
}

TEST_CASE("a training that goes on closes its windows where it would have") {
  AccumulationWindow window(3, false);
  window.set_count(2);
  window.begin_micro_batch(false);
  CHECK(window.closes_window());
}
