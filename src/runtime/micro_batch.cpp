#include "tandem/runtime/micro_batch.h"

#include "nn/recording.h"
#include "runtime/rank_training.h"

namespace tandem {

MicroBatch::MicroBatch(RankTraining& training, bool close)
    : training_(training), recording_(training.context.window.records()), range_(trace::Event::micro_batch) {
  if (recording_)
    recording_->at_each_replay({.before = [&training, close] { training.begin_micro_batch(close); },
                                .after = [&training] { training.end_micro_batch(); }});
  else
    training.begin_micro_batch(close);
}

MicroBatch::~MicroBatch() {
  range_.reset();  // before a profile may end with the step
  if (!recording_) training_.end_micro_batch();
}

ReductionScope::ReductionScope(nn::AccumulationWindow& window, bool reduces)
    : window_(window), no_sync_(window.reduction().no_sync), trigger_(window.reduction().trigger) {
  window_.set_reduction({.no_sync = !reduces, .trigger = reduces});
}

ReductionScope::~ReductionScope() { window_.set_reduction({.no_sync = no_sync_, .trigger = trigger_}); }

}  // namespace tandem
