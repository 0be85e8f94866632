// Why a rank cannot make a call, to be told to the others.
#pragma once

#include <exception>

#include "tandem/core/error.h"

namespace tandem {

/// What `check` throws; null when it throws nothing. Cancelled goes on at once.
template <class Check>
std::exception_ptr refusal_of(const Check& check) {
  try {
    check();
  } catch (const Cancelled&) {
    throw;
  } catch (...) {
    return std::current_exception();
  }
  return nullptr;
}

}  // namespace tandem
