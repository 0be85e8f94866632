#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "run.h"

namespace tandem_report {

/// What the page's scripts read: the runs, in the order given, each with a label of its own. Series are thinned so that
/// a page of many stays small.
nlohmann::ordered_json page_data(const std::vector<Run>& runs);

/// The whole page. Nothing in `data` can end its script or run as one. With a `version`, that of `data`, it asks who
/// has served it (tandem report --follow) for what is new since.
std::string page(const nlohmann::ordered_json& data, const std::string& version = {});

}  // namespace tandem_report
