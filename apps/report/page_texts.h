#pragma once

#include <string_view>

/// What a page is made of, as files of the build: apps/report/page and the plotting library.
namespace tandem_report::texts {

extern const std::string_view frame;    ///< HTML with {{places}} for all others
extern const std::string_view style;    ///< CSS, the library's and ours
extern const std::string_view library;  ///< dygraphs
extern const std::string_view licence;  ///< of dygraphs, plain text
extern const std::string_view script;   ///< JavaScript, ours

}  // namespace tandem_report::texts
