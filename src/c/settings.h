// What structs of tandem/c.h are in C++, and the other way round.
#pragma once

#include <string>

#include "tandem/c.h"
#include "tandem/core/error.h"
#include "tandem/session/session.h"

struct tandem_cancel {
  std::stop_source source;
};

namespace tandem::c_interface {

/// What `pointer` points to. Throws ConfigError where that is nothing.
template <class T>
T& given(T* pointer, const char* what) {
  if (!pointer) throw ConfigError(std::string(what) + " is NULL");
  return *pointer;
}

inline std::string text_or_empty(const char* text) { return text ? text : ""; }

/// These throw ConfigError that names a field whose value is none, or a struct of another layout.
LaunchConfig to_launch_config(const tandem_config& config);
SessionOptions to_session_options(const tandem_session_options& options);
SaveStateOptions to_save_options(const tandem_save_options* options);  ///< may be null: the defaults

/// Pointers and fields that C++ may leave open are left so.
tandem_config to_c(const LaunchConfig& launch);
tandem_session_options to_c(const SessionOptions& options);
tandem_save_options to_c(const SaveStateOptions& options);
tandem_progress to_c(const Progress& progress);

}  // namespace tandem::c_interface
