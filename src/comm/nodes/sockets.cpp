#include "comm/nodes/sockets.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <set>
#include <sstream>
#include <utility>

#include "tandem/core/error.h"

namespace tandem::comm {
namespace {

std::string system_text(int error) { return std::generic_category().message(error); }

using Addresses = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

// Of a host and port, or none, with what went wrong in `error`.
Addresses addresses_of(const std::string& host, int port, int flags, std::string& error) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags;
  const int result = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (result != 0) error = result == EAI_SYSTEM ? system_text(errno) : gai_strerror(result);
  return {result == 0 ? found : nullptr, freeaddrinfo};
}

std::string numeric(const sockaddr* address, socklen_t size) {
  char name[NI_MAXHOST];
  return getnameinfo(address, size, name, sizeof name, nullptr, 0, NI_NUMERICHOST) == 0 ? name : "";
}

int port_of(const sockaddr_storage& address) {
  if (address.ss_family == AF_INET) return ntohs(reinterpret_cast<const sockaddr_in&>(address).sin_port);
  if (address.ss_family == AF_INET6) return ntohs(reinterpret_cast<const sockaddr_in6&>(address).sin6_port);
  return -1;
}

// The inode of the socket that listens at `port`, of a table such as /proc/net/tcp; 0: none.
std::uint64_t listening_inode(const char* table, int port) {
  std::ifstream lines(table);
  std::string line;
  std::getline(lines, line);  // headings
  while (std::getline(lines, line)) {
    std::istringstream fields(line);
    std::string field, local, state, inode;
    fields >> field >> local >> field >> state;
    for (int i = 0; i < 6; ++i) fields >> inode;
    constexpr const char* kListening = "0A";
    const auto colon = local.rfind(':');
    if (state == kListening && colon != std::string::npos && std::stoi(local.substr(colon + 1), nullptr, 16) == port)
      return std::stoull(inode);
  }
  return 0;
}

}  // namespace

Descriptor::~Descriptor() {
  if (number_ >= 0) close(number_);
}

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  std::swap(number_, other.number_);
  return *this;
}

int Descriptor::release() noexcept { return std::exchange(number_, -1); }

std::vector<std::string> resolve(const std::string& host) {
  std::string error;
  const Addresses found = addresses_of(host, 0, 0, error);
  std::vector<std::string> addresses;
  for (const addrinfo* one = found.get(); one; one = one->ai_next)
    if (std::string text = numeric(one->ai_addr, one->ai_addrlen); !text.empty()) addresses.push_back(std::move(text));
  if (addresses.empty())
    throw ConfigError("the host name '" + host + "' has no address here: " + (error.empty() ? "none found" : error) +
                      "; give its address, or a name that this host knows");
  return addresses;
}

std::string own_address_towards(const std::string& address, int port) {
  std::string error;
  const Addresses to = addresses_of(address, port, AI_NUMERICHOST, error);
  if (!to) throw ConfigError("'" + address + "' is no address: " + error);
  const Descriptor socket(::socket(to->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_storage mine{};
  socklen_t size = sizeof mine;
  if (connect(socket.number(), to->ai_addr, to->ai_addrlen) != 0 ||
      getsockname(socket.number(), reinterpret_cast<sockaddr*>(&mine), &size) != 0)
    throw ConfigError("no way leads from this host to " + address + ": " + system_text(errno));
  return numeric(reinterpret_cast<const sockaddr*>(&mine), size);
}

std::string address_of_interface(const std::string& name) {
  ifaddrs* first = nullptr;
  if (getifaddrs(&first) != 0) throw ConfigError("the network interfaces cannot be listed: " + system_text(errno));
  const std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> all(first, freeifaddrs);
  std::set<std::string> others;
  for (const int family : {AF_INET, AF_INET6})
    for (const ifaddrs* one = all.get(); one; one = one->ifa_next) {
      if (!one->ifa_addr || one->ifa_addr->sa_family != family) continue;
      if (one->ifa_name == name)
        return numeric(one->ifa_addr, family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6));
      others.insert(one->ifa_name);
    }
  std::string text;
  for (const std::string& other : others) text += (text.empty() ? "" : ", ") + other;
  throw ConfigError("no network interface '" + name + "' has an address here; those that have one: " + text);
}

bool is_loopback(const std::string& address) {
  in6_addr six;
  if (inet_pton(AF_INET6, address.c_str(), &six) == 1)
    return IN6_IS_ADDR_LOOPBACK(&six) || (IN6_IS_ADDR_V4MAPPED(&six) && six.s6_addr[12] == 127);
  return address.starts_with("127.");
}

Descriptor listen_at(int port, bool only_ipv4) {
  // Both kinds of addresses where the system has the newer one, otherwise the older one.
  Descriptor socket(only_ipv4 ? -1 : ::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in6 six{};
  six.sin6_family = AF_INET6;
  six.sin6_port = htons(static_cast<std::uint16_t>(port));
  sockaddr_in four{};
  four.sin_family = AF_INET;
  four.sin_port = htons(static_cast<std::uint16_t>(port));
  const sockaddr* address = reinterpret_cast<const sockaddr*>(&six);
  socklen_t size = sizeof six;
  const int off = 0, on = 1;
  if (socket.number() < 0) {
    socket = Descriptor(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    address = reinterpret_cast<const sockaddr*>(&four);
    size = sizeof four;
  } else {
    setsockopt(socket.number(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
  }
  setsockopt(socket.number(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);  // of connections that have just ended
  if (bind(socket.number(), address, size) == 0 && listen(socket.number(), 2048) == 0) return socket;
  const int error = errno;
  const std::string process = error == EADDRINUSE ? process_listening_at(port) : "";
  throw ConfigError("port " + std::to_string(port) + " of this host cannot be listened at: " + system_text(error) +
                    (process.empty() ? "" : ", by " + process) + "; give another port");
}

int port_of(const Descriptor& socket) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  return getsockname(socket.number(), reinterpret_cast<sockaddr*>(&address), &size) == 0 ? port_of(address) : -1;
}

std::string process_listening_at(int port) {
  namespace fs = std::filesystem;
  std::uint64_t inode = listening_inode("/proc/net/tcp", port);
  if (inode == 0) inode = listening_inode("/proc/net/tcp6", port);
  if (inode == 0) return "";
  const std::string wanted = "socket:[" + std::to_string(inode) + "]";
  std::error_code none;
  for (const auto& process : fs::directory_iterator("/proc", none)) {
    const std::string id = process.path().filename();
    if (id.find_first_not_of("0123456789") != std::string::npos) continue;
    std::error_code refused;  // others' processes
    for (const auto& file : fs::directory_iterator(process.path() / "fd", refused)) {
      if (fs::read_symlink(file.path(), refused) != wanted) continue;
      std::string name;
      std::getline(std::ifstream(process.path() / "comm"), name);
      return "process " + id + " (" + name + ")";
    }
  }
  return "a process of another user";
}

std::string try_to_connect(const std::string& address, int port, int milliseconds) {
  std::string error;
  const Addresses to = addresses_of(address, port, AI_NUMERICHOST, error);
  if (!to) return error;
  const Descriptor socket(::socket(to->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (socket.number() < 0) return system_text(errno);
  if (connect(socket.number(), to->ai_addr, to->ai_addrlen) == 0) return "";
  if (errno != EINPROGRESS) return system_text(errno);
  pollfd wait{socket.number(), POLLOUT, 0};
  if (poll(&wait, 1, milliseconds) <= 0) return "no answer";
  int result = 0;
  socklen_t size = sizeof result;
  getsockopt(socket.number(), SOL_SOCKET, SO_ERROR, &result, &size);
  return result == 0 ? "" : system_text(result);
}

std::vector<int> connections_to(int port) {
  std::vector<int> found;
  std::error_code none;
  for (const auto& file : std::filesystem::directory_iterator("/proc/self/fd", none)) {
    const int number = std::stoi(file.path().filename());
    sockaddr_storage peer{};
    socklen_t size = sizeof peer;
    if (getpeername(number, reinterpret_cast<sockaddr*>(&peer), &size) == 0 && port_of(peer) == port)
      found.push_back(number);
  }
  return found;
}

std::string host_id() {
  std::string boot;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), boot);
  return boot;
}

std::string host_name() {
  char name[HOST_NAME_MAX + 1] = "";
  gethostname(name, sizeof name - 1);
  return name;
}

}  // namespace tandem::comm
