// tools/layers.sh finds this.
#include "comm/rank_group.h"
