#include "common/program.h"

#include <exception>

#include <c10/util/Exception.h>

#include "tandem/core/error.h"

namespace apps {
namespace {

// A rank's failure is told with its rank, but for what is wrong with the configuration, which is all ranks'.
int code_of(const tandem::RankError& error, const std::function<void(const std::string&)>& complain) {
  try {
    error.rethrow_cause();
  } catch (const tandem::ConfigError& cause) {
    complain(cause.what());
    return kWrongUsage;
  } catch (const tandem::Cancelled&) {
    complain("interrupted");
    return kInterrupted;
  } catch (...) {
    complain(error.what());
    return kFailed;
  }
}

}  // namespace

int exit_code_of(const std::function<int()>& body, const std::function<void(const std::string&)>& complain) {
  const auto end = [&](const char* what, int code) {
    complain(what);
    return code;
  };
  try {
    return body();
  } catch (const tandem::RankError& error) {
    return code_of(error, complain);
  } catch (const tandem::ConfigError& error) {
    return end(error.what(), kWrongUsage);
  } catch (const tandem::Cancelled&) {
    return end("interrupted", kInterrupted);
  } catch (const c10::Error& error) {
    return end(error.what_without_backtrace(), kFailed);
  } catch (const std::exception& error) {
    return end(error.what(), kFailed);
  }
}

}  // namespace apps
