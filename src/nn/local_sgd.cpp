#include "tandem/nn/local_sgd.h"

#include <utility>

namespace tandem::nn {

LocalSgd::LocalSgd(int steps, std::function<bool()> closes_window, std::function<void()> average)
    : steps_(steps), closes_window_(std::move(closes_window)), average_(std::move(average)) {}

void LocalSgd::step() {
  if (!closes_window_()) return;
  windows_ += 1;
  if (windows_ % steps_ == 0) average_();
}

}  // namespace tandem::nn
