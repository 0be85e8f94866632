// Reads the traces that Accelerator::profile writes.
#pragma once

#include <algorithm>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace tandem::test {

/// A range of a thread, in microseconds.
struct TracedRange {
  std::string name;
  double begin, end;

  bool within(const TracedRange& outer) const { return begin >= outer.begin && end <= outer.end; }
};

/// What a thread did, in the order in which it began.
struct TracedThread {
  std::string name;
  std::vector<TracedRange> ranges, operators;

  /// The ranges whose name begins with `name`.
  std::vector<TracedRange> all(const std::string& name) const {
    std::vector<TracedRange> found;
    for (const TracedRange& range : ranges)
      if (range.name.rfind(name, 0) == 0) found.push_back(range);
    return found;
  }
};

/// The threads of the trace that have events, by their sort index.
inline std::vector<TracedThread> read_trace(const std::string& path) {
  std::ifstream file(path);
  const auto trace = nlohmann::json::parse(file);
  std::map<int, TracedThread> by_id;
  std::map<int, int> id_of_index;
  for (const auto& event : trace.at("traceEvents")) {
    const std::string category = event.value("cat", "");
    if (category != "user_annotation" && category != "cpu_op") continue;
    const double begin = event.at("ts");
    TracedThread& thread = by_id[event.at("tid").get<int>()];
    (category == "cpu_op" ? thread.operators : thread.ranges)
        .push_back({event.at("name"), begin, begin + event.at("dur").get<double>()});
  }
  for (const auto& event : trace.at("traceEvents")) {
    const std::string name = event.at("name");
    if (!event.at("tid").is_number() || by_id.count(event.at("tid").get<int>()) == 0) continue;
    if (name == "thread_name") by_id[event.at("tid").get<int>()].name = event.at("args").at("name");
    if (name == "thread_sort_index") id_of_index[event.at("args").at("sort_index").get<int>()] = event.at("tid");
  }
  std::vector<TracedThread> threads;
  for (const auto& [index, id] : id_of_index) threads.push_back(by_id.at(id));
  for (TracedThread& thread : threads)
    for (auto* ranges : {&thread.ranges, &thread.operators})
      std::stable_sort(ranges->begin(), ranges->end(), [](const auto& a, const auto& b) { return a.begin < b.begin; });
  return threads;
}

}  // namespace tandem::test
