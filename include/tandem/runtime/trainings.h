#pragma once

#include <functional>
#include <string>

#include "tandem/runtime/launch.h"

namespace tandem {

/// The body of a training that is started by its name, with options of its own making.
using Training = std::function<void(Accelerator& accelerator, const std::string& options)>;

/// Makes `training` known under `name` in this process: for hosts that are not written in C++ (tandem/c.h), and for
/// programs whose trainings come in plug-ins. One that was known under that name is replaced, and never destroyed. Any
/// thread. Throws ConfigError when the name or the function is empty.
void register_training(const std::string& name, Training training);

/// Finds the training of that name. Any thread. Throws ConfigError that lists those that are known.
Training find_training(const std::string& name);

}  // namespace tandem
