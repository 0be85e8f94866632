// The tests' main, for both versions of Catch2.
#if __has_include(<catch2/catch_session.hpp>)
#include <catch2/catch_session.hpp>
#else
#define CATCH_CONFIG_RUNNER
#include <catch2/catch.hpp>
#endif

#include <cstdio>
#include <cstdlib>

int main(int argc, char** argv) {
  const int code = Catch::Session().run(argc, argv);
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return code;  // what they find, they say at the end
#else
  // LibTorch takes its operators down for a quarter of the time that a short test takes. (How programs end that return
  // from main is tested with programs that do.)
  std::fflush(nullptr);
  std::_Exit(code);
#endif
}
