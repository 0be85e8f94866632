#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "series.h"

namespace tandem_report {

/// Something that happened at a step: "checkpoint", "resumed", "paused" and others.
struct Event {
  std::int64_t step;
  std::string name, detail;
};

struct Text {
  std::int64_t step;
  std::string name, text;
};

/// counts[i] values lie between edges[i] and edges[i + 1].
struct Histogram {
  std::int64_t step;
  std::vector<double> edges, counts;
};

struct Image {
  std::string png, caption;  ///< the file's bytes
};

/// The images that were logged together under a name.
struct ImageSet {
  std::int64_t step;
  std::vector<Image> images;
};

/// Rows: true classes; columns: predicted ones.
struct Matrix {
  std::int64_t step;
  std::vector<std::string> labels;
  std::vector<std::vector<double>> values;
};

/// A tracked run, as its log tells it. Texts are as long as a page can show.
struct Run {
  std::filesystem::path directory;
  std::string name, device, status;             ///< status: "finished", "interrupted", "failed"; "" without an end
  double started = 0, ended = 0;                ///< seconds since 1970 of the first and of the last line
  std::int64_t ranks = 0;                       ///< 0: not told
  std::map<std::string, std::string> config;    ///< strings as they are, everything else as JSON
  std::map<std::string, std::string> versions;  ///< of Tandem, LibTorch and others
  std::map<std::string, double> final_values;
  std::map<std::string, Series> series;
  Series elapsed;  ///< seconds of training up to a step; pauses between a run and its resumption do not count
  std::vector<Event> events;
  std::map<std::string, std::vector<Histogram>> histograms;  ///< by name, in the log's order
  std::map<std::string, ImageSet> images;                    ///< the last of each name
  std::map<std::string, Matrix> matrices;                    ///< the last of each name
  std::vector<Text> texts;
  std::vector<std::string> notes;  ///< sentences on what could not be read or was left out
};

}  // namespace tandem_report
