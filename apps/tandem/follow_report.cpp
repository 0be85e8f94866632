#include "follow_report.h"

#include <algorithm>
#include <chrono>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include <httplib.h>

#include "report/page.h"
#include "report/read_run.h"
#include "tandem/core/error.h"

namespace tandem_tool {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

constexpr auto kAnswersWithin = 10s;  // also where nothing is new

// The runs as their logs are. A log is read again when it has changed, but for most of the time it is not read.
class LiveRuns {
 public:
  explicit LiveRuns(std::vector<fs::path> directories) : directories_(std::move(directories)) { read(state_of_logs()); }

  struct Reading {
    std::string version;
    nlohmann::ordered_json data;
  };

  Reading now() {
    const std::lock_guard lock(mutex_);
    auto state = state_of_logs();
    if (state != read_state_ && Clock::now() >= read_again_) try {
        read(std::move(state));
      } catch (const tandem::Error&) {
        // It may be back soon; until then there is what was read before.
      }
    return {std::to_string(version_), data_};
  }

 private:
  using State = std::vector<std::pair<std::uintmax_t, fs::file_time_type>>;

  State state_of_logs() const {
    State state;
    for (const fs::path& directory : directories_) {
      std::error_code unknown;
      const fs::path log = directory / "log.jsonl";
      const auto size = fs::file_size(log, unknown);
      state.emplace_back(size, fs::last_write_time(log, unknown));
    }
    return state;
  }

  void read(State state) {
    const auto began = Clock::now();
    std::vector<tandem_report::Run> runs;
    for (const fs::path& directory : directories_) runs.push_back(tandem_report::read_run(directory));
    data_ = tandem_report::page_data(runs);
    read_state_ = std::move(state);
    version_ += 1;
    const auto ended = Clock::now();
    read_again_ = ended + std::max<Clock::duration>(500ms, 5 * (ended - began));
  }

  const std::vector<fs::path> directories_;
  std::mutex mutex_;  // guards all below
  State read_state_;
  nlohmann::ordered_json data_;
  int version_ = 0;
  Clock::time_point read_again_;
};

// Waits for a version that `known` is not, until there is one, `stop`, or time is up.
LiveRuns::Reading wait_for_news(LiveRuns& runs, const std::string& known, const std::stop_token& stop) {
  const auto until = Clock::now() + kAnswersWithin;
  LiveRuns::Reading reading = runs.now();
  while (reading.version == known && Clock::now() < until && !stop.stop_requested()) {
    std::this_thread::sleep_for(100ms);
    reading = runs.now();
  }
  return reading;
}

// Pages of other servers may not read it by a name of their own for this address.
bool is_for_us(const httplib::Request& request, int port) {
  const std::string host = request.get_header_value("Host"), end = ":" + std::to_string(port);
  return host == "127.0.0.1" + end || host == "localhost" + end;
}

void add_answers(httplib::Server& server, LiveRuns& runs, const int& port, const std::stop_token& stop) {
  server.set_default_headers({{"Cache-Control", "no-store"}, {"X-Content-Type-Options", "nosniff"}});
  server.set_pre_routing_handler([&port](const httplib::Request& request, httplib::Response& response) {
    if (is_for_us(request, port)) return httplib::Server::HandlerResponse::Unhandled;
    response.status = 403;
    return httplib::Server::HandlerResponse::Handled;
  });
  server.Get("/", [&runs](const httplib::Request&, httplib::Response& response) {
    const auto reading = runs.now();
    response.set_content(tandem_report::page(reading.data, reading.version), "text/html; charset=utf-8");
  });
  server.Get("/data", [&runs, stop](const httplib::Request& request, httplib::Response& response) {
    const std::string known = request.get_param_value("after");
    auto reading = wait_for_news(runs, known, stop);
    response.status = 204;
    if (reading.version == known) return;
    response.status = 200;
    reading.data["version"] = reading.version;
    using Json = nlohmann::ordered_json;
    response.set_content(reading.data.dump(-1, ' ', true, Json::error_handler_t::replace), "application/json");
  });
}

}  // namespace

void follow_report(const std::vector<fs::path>& directories, int port, const std::function<void(int port)>& listening,
                   const std::stop_token& stop) {
  LiveRuns runs(directories);
  httplib::Server server;
  add_answers(server, runs, port, stop);
  if (port == 0)
    port = server.bind_to_any_port("127.0.0.1");
  else if (!server.bind_to_port("127.0.0.1", port))
    port = -1;
  if (port < 0) throw tandem::ConfigError("--port: no port of 127.0.0.1 could be had; use another, or 0 for any");
  listening(port);
  const std::stop_callback end(stop, [&server] { server.stop(); });
  if (!stop.stop_requested()) server.listen_after_bind();
}

}  // namespace tandem_tool
