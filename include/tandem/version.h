#pragma once

/// The version of these headers, by semver.org; docs/stability.md says what of Tandem it promises. CMake reads it here.
#define TANDEM_VERSION_MAJOR 0
#define TANDEM_VERSION_MINOR 1
#define TANDEM_VERSION_PATCH 0
#define TANDEM_VERSION "0.1.0"
