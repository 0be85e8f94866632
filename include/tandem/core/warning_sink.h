#pragma once

#include <functional>
#include <string>

namespace tandem {

/// Takes a sentence for whoever runs the program, on any thread. Empty: nobody listens.
using WarningSink = std::function<void(const std::string&)>;

}  // namespace tandem
