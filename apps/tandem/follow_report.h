#pragma once

#include <filesystem>
#include <functional>
#include <stop_token>
#include <vector>

namespace tandem_tool {

/// Serves the report of the tracked runs in `directories` on 127.0.0.1 until `stop`, as they are when it is asked for:
/// a page that updates itself while they go on. Nothing can be written through it. `port` 0: any that is free. Calls
/// `listening` with the port. Throws tandem::ConfigError when a directory holds no run, or the port is taken.
void follow_report(const std::vector<std::filesystem::path>& directories, int port,
                   const std::function<void(int port)>& listening, const std::stop_token& stop);

}  // namespace tandem_tool
