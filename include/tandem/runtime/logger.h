#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <set>
#include <string>

namespace tandem {

class Accelerator;

/// How much a message matters, in rising order.
enum class LogLevel : std::uint8_t { debug, info, warning, error };

/// "debug", "info", "warning", "error".
const char* name_of(LogLevel level);

/// Where the messages of all ranks go: what the program that launches them does with a line. Made before the launch,
/// and outlives it. Any thread.
class LogSink {
 public:
  /// `write` gets lines without a newline, one at a time, on the rank's thread that has something to say; those below
  /// `least` do not come. An empty function is silence.
  explicit LogSink(std::function<void(LogLevel, const std::string& line)> write, LogLevel least = LogLevel::info);

  bool wants(LogLevel level) const { return write_ && level >= least_; }  ///< whether lines of this level are passed on

  /// Passes the lines on, if their level is wanted, with no other rank's between them.
  void write(LogLevel level, const std::string& lines);

 private:
  const std::function<void(LogLevel, const std::string&)> write_;
  const LogLevel least_;
  std::mutex mutex_;
};

/// Which ranks say a message.
enum class LogRanks {
  main,     ///< rank 0; the others' calls do nothing
  all,      ///< each rank, when it comes to it
  in_order  ///< each rank, in the order of the ranks, for which they wait for each other: collective
};

/// Who says a message, and how often.
struct LogOptions {
  LogRanks ranks = LogRanks::main;  ///< whose calls count
  bool once = false;                ///< the rank says this text once however often it is logged, whatever its level
};

/// What one rank says to the program. Each line begins with the rank, "[rank 3] ". Belongs to the rank's thread, and
/// does not outlive the accelerator and the sink.
///
///     tandem::LogSink sink([](tandem::LogLevel, const std::string& line) { std::cerr << line << '\n'; });
///     tandem::launch(config, [&](tandem::Accelerator& accelerator) {
///       tandem::Logger log(accelerator, sink);
///       log.info("training begins");                                                    // rank 0
///       log.info("has " + std::to_string(n) + " samples", {.ranks = LogRanks::in_order});  // all of them
///       log.warning("the loss is NaN", {.ranks = LogRanks::all, .once = true});
///     });
class Logger {
 public:
  /// Refers to both.
  Logger(Accelerator& accelerator, LogSink& sink) : accelerator_(accelerator), sink_(sink) {}
  Logger(const Logger&) = delete;
  Logger& operator=(const Logger&) = delete;

  /// Says `text`, which may have several lines. Collective with LogRanks::in_order, then every rank gives the same
  /// level; otherwise it waits for nobody. Throws what the sink's function throws.
  void log(LogLevel level, const std::string& text, LogOptions options = {});

  /// `log` at level debug.
  void debug(const std::string& text, LogOptions options = {}) { log(LogLevel::debug, text, options); }

  /// `log` at level info.
  void info(const std::string& text, LogOptions options = {}) { log(LogLevel::info, text, options); }

  /// `log` at level warning.
  void warning(const std::string& text, LogOptions options = {}) { log(LogLevel::warning, text, options); }

  /// `log` at level error.
  void error(const std::string& text, LogOptions options = {}) { log(LogLevel::error, text, options); }

 private:
  bool was_said(const std::string& text, bool once);

  Accelerator& accelerator_;
  LogSink& sink_;
  std::set<std::string> said_;  // once
};

}  // namespace tandem
