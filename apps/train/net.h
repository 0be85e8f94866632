#pragma once

#include "tandem/models/net.h"

namespace train {

/// What is trained.
using Net = tandem::models::Net;

}  // namespace train
