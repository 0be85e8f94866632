// Ports, names and interfaces of this host.
#include "comm/nodes/sockets.h"

#include <string>

#include "support/catch.h"
#include "support/error_of.h"
#include "tandem/core/error.h"

using namespace tandem;
using namespace tandem::comm;
using Catch::Matchers::ContainsSubstring;
using test::error_of;

TEST_CASE("a port that is in use is an error that names its process, and a free one is given") {
  const Descriptor first = listen_at(0);
  const int port = port_of(first);
  CHECK(port > 0);
  CHECK_THAT(
      error_of<ConfigError>([&] { listen_at(port); }),
      ContainsSubstring("port " + std::to_string(port)) && ContainsSubstring("by process " + std::to_string(getpid())));
  CHECK(try_to_connect("127.0.0.1", port, 1000).empty());
}

TEST_CASE("a name that does not resolve is an error that names it") {
  CHECK_THAT(error_of<ConfigError>([] { resolve("no-such-host.invalid"); }),
             ContainsSubstring("'no-such-host.invalid'"));
  CHECK(!resolve("localhost").empty());
  CHECK(resolve("127.0.0.1") == std::vector<std::string>{"127.0.0.1"});
  CHECK(own_address_towards("127.0.0.1", 1234) == "127.0.0.1");
  CHECK(!host_name().empty());
  CHECK(!host_id().empty());
}

TEST_CASE("a network interface is known by its name, and one that is not there is an error that names the others") {
  CHECK(address_of_interface("lo") == "127.0.0.1");
  const std::string error = error_of<ConfigError>([] { address_of_interface("nowhere"); });
  CHECK_THAT(error, Catch::Matchers::ContainsSubstring("'nowhere'") && Catch::Matchers::ContainsSubstring("lo"));
}
