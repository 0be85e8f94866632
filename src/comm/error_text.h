#pragma once

#include <exception>
#include <string>

#include <c10/util/Exception.h>

namespace tandem {

/// What `error` says, for people: LibTorch's errors without their backtrace.
inline std::string text_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const c10::Error& e) {
    return e.what_without_backtrace();
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "an exception that is no std::exception";
  }
}

}  // namespace tandem
