#pragma once

namespace tandem {

/// Sets the intra-op threads of LibTorch operators that the calling thread runs, and of no other thread.
void set_intra_op_threads(int threads);

}  // namespace tandem
