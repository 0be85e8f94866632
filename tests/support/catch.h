// Catch2 as Debian 12 (version 2) and Ubuntu 24.04 (version 3) have it, under version 3's names.
#pragma once

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
#else
#include <catch2/catch.hpp>
namespace Catch::Matchers {
inline auto ContainsSubstring(const std::string& text) { return Contains(text); }
}  // namespace Catch::Matchers
#endif

#if __has_include(<catch2/catch_all.hpp>)
using Catch::Approx;
#endif
using Catch::Matchers::ContainsSubstring;
