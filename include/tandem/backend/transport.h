#pragma once

namespace tandem {

/// How GPU ranks exchange data. Sums of more than two ranks' gradients, and of more than 512 KiB at once, are added up
/// in another order by NCCL than through peers' memory; everything else gives the same bits.
enum class Transport {
  automatic,   ///< NCCL, and small tensors by what is faster; ranks that share a GPU, or a single one: peers' memory
  nccl,        ///< NCCL alone. Ranks that share a GPU need NCCL 2.30 and NCCL_MULTI_RANK_GPU_ENABLE=1
  peer_memory  ///< without NCCL; the GPUs must reach each other's memory
};

}  // namespace tandem
