// Version 3 of Catch2 brings its main as a library, version 2 as a macro.
#if !__has_include(<catch2/catch_all.hpp>)
#define CATCH_CONFIG_MAIN
#include <catch2/catch.hpp>
#endif
