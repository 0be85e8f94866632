#pragma once

#include <string>

namespace tandem::test {

/// The text of the `Error` that `call` throws; empty when it throws none.
template <class Error, class Call>
std::string error_of(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace tandem::test
