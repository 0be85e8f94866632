#include "tandem/models/net.h"

namespace tandem::models {

std::string Net::head() const {
  const auto named = named_parameters();
  if (named.is_empty()) return {};
  const std::string& last = named.back().key();
  return last.substr(0, std::min(last.rfind('.'), last.size()));
}

}  // namespace tandem::models
