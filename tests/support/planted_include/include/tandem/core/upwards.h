// tools/layers.sh finds this.
#include "tandem/comm/rank_group.h"
