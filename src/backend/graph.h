#pragma once

namespace at {
struct Generator;
}

namespace tandem {

/// Work of a device that is recorded once and then done any number of times, on the same memory. Belongs to one thread.
/// Throws tandem::Error.
class Graph {
 public:
  virtual ~Graph() = default;

  /// From here to `end`, what this thread enqueues on its current stream is recorded instead of done. Numbers that it
  /// draws from the device's default generator and from `own` are others at each replay.
  virtual void begin(const at::Generator& own) = 0;

  /// Ends the recording.
  virtual void end() = 0;

  /// Instead of `end`, also after an error: the thread's stream and its generators are as before `begin`. Never throws.
  virtual void abandon() noexcept = 0;

  /// Enqueues what was recorded on the current stream.
  virtual void replay() = 0;
};

}  // namespace tandem
