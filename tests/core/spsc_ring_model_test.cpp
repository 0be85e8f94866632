// Every interleaving of a small model of SpscRing: two sides that push, pop, sleep and close, and a cancel. A step of
// the model is one access to shared memory, in the order of the code; all are sequentially consistent, as the
// handshake's are in the code.
#include <array>
#include <set>
#include <string>
#include <vector>

#include "support/catch.h"

namespace {

struct Model {
  int capacity, items;
  bool cancels;
  // The mistake that the handshake is there to prevent: looking before announcing.
  bool looks_before_announcing = false;
};

enum Producer {
  p_check,
  p_look,
  p_write,
  p_publish,
  p_see_sleeper,
  p_wake,
  p_before,
  p_announce,
  p_again,
  p_wait,
  p_wake_up,
  p_close,
  p_see_sleeper_last,
  p_wake_last,
  p_end
};
enum Consumer {
  c_check,
  c_see_closed,
  c_look,
  c_read,
  c_give_back,
  c_see_sleeper,
  c_wake,
  c_before,
  c_announce,
  c_again,
  c_wait,
  c_wake_up,
  c_end,
  c_cancelled
};
enum Canceller { x_cancel, x_pushed, x_popped, x_end };

struct State {
  // Shared.
  int tail = 0, head = 0, pushed = 0, popped = 0;
  bool consumer_sleeps = false, producer_sleeps = false, closed = false, cancelled = false;
  std::array<int, 2> slots{-1, -1};
  // Of each side.
  int producer = p_check, next_item = 0, head_seen = 0, popped_before = 0;
  int consumer = c_check, received = 0, tail_seen = 0, pushed_before = 0;
  bool closed_seen = false;
  int canceller = x_cancel;

  auto operator<=>(const State&) const = default;
};

class Explorer {
 public:
  explicit Explorer(Model model) : model_(model) {}

  // What goes wrong in some interleaving; empty when nothing does.
  std::string explore() {
    State start;
    if (!model_.cancels) start.canceller = x_end;
    std::vector<State> open{start};
    seen_.insert(start);
    while (!open.empty() && problem_.empty()) {
      const State state = open.back();
      open.pop_back();
      bool moved = false;
      for (const auto step : {&Explorer::step_producer, &Explorer::step_consumer, &Explorer::step_canceller}) {
        State next = state;
        if (!(this->*step)(next)) continue;
        moved = true;
        if (seen_.insert(next).second) open.push_back(next);
      }
      if (!moved) check_end(state);
    }
    return problem_;
  }

  std::size_t states() const { return seen_.size(); }

 private:
  // Each makes one step; false where that side waits or has ended.
  bool step_producer(State& s) {
    switch (s.producer) {
      case p_check: s.producer = s.cancelled ? p_end : s.next_item == model_.items ? p_close : p_look; return true;
      case p_look:
        if (s.tail - s.head_seen == model_.capacity) s.head_seen = s.head;
        s.producer = s.tail - s.head_seen == model_.capacity ? p_before : p_write;
        return true;
      case p_write:
        if (slot(s, s.tail) != -1) problem_ = "an item that was not taken is overwritten";
        slot(s, s.tail) = s.next_item++;
        s.producer = p_publish;
        return true;
      case p_publish:
        s.tail += 1;
        s.producer = p_see_sleeper;
        return true;
      case p_see_sleeper: s.producer = s.consumer_sleeps ? p_wake : p_check; return true;
      case p_wake:
        s.pushed += 1;
        s.producer = p_check;
        return true;
      case p_before:
        s.popped_before = s.popped;
        s.producer = model_.looks_before_announcing ? p_again : p_announce;
        return true;
      case p_announce:
        s.producer_sleeps = true;
        s.producer = model_.looks_before_announcing ? p_wait : p_again;
        return true;
      case p_again: {
        const bool ready = s.tail - s.head != model_.capacity || s.cancelled;
        s.producer = ready ? p_wake_up : model_.looks_before_announcing ? p_announce : p_wait;
        return true;
      }
      case p_wait:
        if (s.popped == s.popped_before) return false;
        s.producer = p_wake_up;
        return true;
      case p_wake_up:
        s.producer_sleeps = false;
        s.producer = p_check;
        return true;
      case p_close:
        s.closed = true;
        s.producer = p_see_sleeper_last;
        return true;
      case p_see_sleeper_last: s.producer = s.consumer_sleeps ? p_wake_last : p_end; return true;
      case p_wake_last:
        s.pushed += 1;
        s.producer = p_end;
        return true;
      default: return false;
    }
  }

  bool step_consumer(State& s) {
    switch (s.consumer) {
      case c_check: s.consumer = s.cancelled ? c_cancelled : c_see_closed; return true;
      case c_see_closed:
        s.closed_seen = s.closed;
        s.consumer = c_look;
        return true;
      case c_look:
        if (s.head == s.tail_seen) s.tail_seen = s.tail;
        s.consumer = s.head != s.tail_seen ? c_read : s.closed_seen ? c_end : c_before;
        return true;
      case c_read:
        if (slot(s, s.head) != s.received) problem_ = "an item is lost or comes twice";
        slot(s, s.head) = -1;
        s.received += 1;
        s.consumer = c_give_back;
        return true;
      case c_give_back:
        s.head += 1;
        s.consumer = c_see_sleeper;
        return true;
      case c_see_sleeper: s.consumer = s.producer_sleeps ? c_wake : c_check; return true;
      case c_wake:
        s.popped += 1;
        s.consumer = c_check;
        return true;
      case c_before:
        s.pushed_before = s.pushed;
        s.consumer = c_announce;
        return true;
      case c_announce:
        s.consumer_sleeps = true;
        s.consumer = c_again;
        return true;
      case c_again: s.consumer = s.tail != s.head || s.closed || s.cancelled ? c_wake_up : c_wait; return true;
      case c_wait:
        if (s.pushed == s.pushed_before) return false;
        s.consumer = c_wake_up;
        return true;
      case c_wake_up:
        s.consumer_sleeps = false;
        s.consumer = c_check;
        return true;
      default: return false;
    }
  }

  bool step_canceller(State& s) {
    switch (s.canceller) {
      case x_cancel:
        s.cancelled = true;
        s.canceller = x_pushed;
        return true;
      case x_pushed:
        s.pushed += 1;
        s.canceller = x_popped;
        return true;
      case x_popped:
        s.popped += 1;
        s.canceller = x_end;
        return true;
      default: return false;
    }
  }

  void check_end(const State& s) {
    if (s.producer != p_end) problem_ = "the producer waits for ever";
    if (s.consumer != c_end && s.consumer != c_cancelled) problem_ = "the consumer waits for ever";
    if (s.consumer == c_end && !s.cancelled && s.received != model_.items) problem_ = "the end came before all items";
  }

  int& slot(State& s, int index) const { return s.slots[static_cast<std::size_t>(index % model_.capacity)]; }

  Model model_;
  std::set<State> seen_;
  std::string problem_;
};

}  // namespace

TEST_CASE("in no interleaving an item is lost, comes twice, or a side sleeps for ever") {
  for (const int capacity : {1, 2})
    for (const bool cancels : {false, true}) {
      CAPTURE(capacity, cancels);
      Explorer explorer({.capacity = capacity, .items = 4, .cancels = cancels});
      CHECK(explorer.explore() == "");
      CHECK(explorer.states() > 500);
    }
}

TEST_CASE("the model finds the lost wake-up of a side that looks before it announces its sleep") {
  Explorer explorer({.capacity = 1, .items = 4, .cancels = false, .looks_before_announcing = true});
  CHECK_THAT(explorer.explore(), ContainsSubstring("waits for ever"));
}
