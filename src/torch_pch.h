// Precompiled once for the library, its tests, programs and benchmarks: LibTorch's headers take 10 to 20 s to parse.
#pragma once
#include <torch/torch.h>
