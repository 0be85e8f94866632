#pragma once

#include <exception>
#include <stdexcept>
#include <string>

namespace tandem {

/// Base of all exceptions that Tandem throws itself.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// An option, argument or machine does not fit: nothing was started.
class ConfigError : public Error {
 public:
  using Error::Error;
};

/// Data is missing, damaged or of another kind than needed.
class DataError : public Error {
 public:
  using Error::Error;
};

/// A dataset failed to give a sample: says which, and nests the exception that the dataset threw. Out of `launch` comes
/// a RankError with this text that nests the dataset's exception.
class SampleError : public DataError, public std::nested_exception {
 public:
  /// Nests the exception that is being handled: to be constructed in a catch block.
  using DataError::DataError;
};

/// The ranks do not act alike: different calls, a rank that returned early, a wait that took too long.
class CollectiveError : public Error {
 public:
  using Error::Error;
};

/// A file of weights or training state cannot be written or read.
class CheckpointError : public Error {
 public:
  using Error::Error;
};

/// Another rank failed, or the launch was cancelled: thrown by everything that waits.
class Cancelled : public Error {
 public:
  using Error::Error;
};

/// What `launch` throws: the first exception that left a rank's body, nested, and that rank.
///
///     catch (const tandem::RankError& error) {
///       try { error.rethrow_cause(); } catch (const MyError& mine) { … }
///     }
class RankError : public Error, public std::nested_exception {
 public:
  /// Nests the exception that is being handled: to be constructed in a catch block.
  RankError(int rank, const std::string& what) : Error(what), rank_(rank) {}

  /// The rank to blame; -1 when it is none in particular.
  int rank() const noexcept { return rank_; }

  /// Throws the original exception, as the object that the rank threw.
  [[noreturn]] void rethrow_cause() const { rethrow_nested(); }

 private:
  int rank_;
};

}  // namespace tandem
