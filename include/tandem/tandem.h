#pragma once

// Everything that a training program needs.
#include "tandem/core/error.h"
#include "tandem/data/batch_sampler_shard.h"
#include "tandem/data/data_loader.h"
#include "tandem/data/image_folder.h"
#include "tandem/data/mnist.h"
#include "tandem/data/tensor_dataset.h"
#include "tandem/data/text_dataset.h"
#include "tandem/io/safetensors.h"
#include "tandem/nn/communication_hooks.h"
#include "tandem/optim/exponential_moving_average.h"
#include "tandem/optim/lr_schedulers.h"
#include "tandem/optim/one_cycle_lr.h"
#include "tandem/optim/reduce_lr_on_plateau.h"
#include "tandem/optim/sequential_lr.h"
#include "tandem/runtime/accelerator.h"
#include "tandem/runtime/launch.h"
