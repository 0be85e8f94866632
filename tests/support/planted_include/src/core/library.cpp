// tools/layers.sh finds this.
#include <torch/torch.h>
