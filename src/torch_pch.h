// Precompiled for all that uses LibTorch, whose headers take 10 to 20 s to parse. Not all of torch/torch.h: GCC makes
// the templates that a precompiled header has promised in every file anew, which takes 6 s for that one, 3 s for these.
#pragma once
#include <torch/types.h>

#include <torch/nn/module.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim.h>
#include <torch/serialize.h>
