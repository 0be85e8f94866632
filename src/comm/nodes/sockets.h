// Names, addresses and ports of hosts. Needs no LibTorch.
#pragma once

#include <string>
#include <vector>

namespace tandem::comm {

/// An open file descriptor that is closed with it.
class Descriptor {
 public:
  explicit Descriptor(int number = -1) noexcept : number_(number) {}
  ~Descriptor();
  Descriptor(Descriptor&& other) noexcept : number_(other.release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept;

  int number() const noexcept { return number_; }  ///< -1: none
  int release() noexcept;                          ///< gives it to the caller

 private:
  int number_;
};

/// The numeric addresses of `host`, as the system orders them. Throws ConfigError that names it when there are none.
/// May take as long as the system's resolver does.
std::vector<std::string> resolve(const std::string& host);

/// The address of this host from which packets go to `address`, which is numeric: what others can reach it at. Nothing
/// is sent. Throws ConfigError when no way leads there.
std::string own_address_towards(const std::string& address, int port);

/// The address of this host's network interface of that name; the first IPv4 one, if it has any. Throws ConfigError
/// that says which interfaces have addresses.
std::string address_of_interface(const std::string& name);

/// Whether a numeric address leads to the host that asks.
bool is_loopback(const std::string& address);

/// A socket that listens at `port` (0: any that is free) of all addresses of this host. Throws ConfigError that names
/// the process which has the port, as far as that can be known.
Descriptor listen_at(int port, bool only_ipv4 = false);

/// The port at which a socket listens.
int port_of(const Descriptor& socket);

/// The process that listens at `port` on this host, as "process 123 (train)"; empty where that cannot be known.
std::string process_listening_at(int port);

/// Tries whether somebody listens at `port` of a numeric address. Empty: yes; otherwise what the system says.
std::string try_to_connect(const std::string& address, int port, int milliseconds);

/// Descriptors of this process's connections to `port` of whatever host.
std::vector<int> connections_to(int port);

/// What tells this host from others, whatever they are called: empty where the system does not say.
std::string host_id();

/// What this host calls itself.
std::string host_name();

}  // namespace tandem::comm
