// Files of torch.save as they are written: what goes in is known before.
#pragma once

#include <string>

#include "io/pickler.h"
#include "tandem/io/write_bytes.h"

namespace tandem::io {

/// Writes what pickle_of has made. Throws CheckpointError that names the file, as `shown`.
void write_archive(const WriteBytes& write, const std::string& shown, const Pickle& pickle);

}  // namespace tandem::io
