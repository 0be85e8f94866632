#pragma once

#include <cstddef>

namespace tandem::nn {

/// How the gradients of a model are reduced, with the names of PyTorch's DistributedDataParallel.
struct GradientReducerOptions {
  /// Gradients are reduced in buckets of about this size, those that come first in a smaller one, so that their
  /// reduction begins early. Sizes that would give a model more than 128 buckets are raised.
  std::size_t bucket_bytes = 25 << 20;
  /// Size of the first bucket.
  std::size_t first_bucket_bytes = 1 << 20;
  /// After a reduction gradients are views of the buckets' memory. A gradient that the program still refers to (by
  /// itself, or by a view or detach() of it) when the next reduction begins stays what it is: it gets memory of its
  /// own. Off: each gradient has memory of its own.
  bool gradient_as_bucket_view = true;
  /// On CPU ranks all ranks' gradients then are one memory. A rank that writes to a gradient of its own, through
  /// LibTorch or a pointer that it asks LibTorch for then, gets a copy. Communication hooks need a bucket a rank.
  bool share_gradients = true;
  /// Buffers become rank 0's when a reduction ends; one that a graph still needs for its backward pass, after the
  /// model's next update.
  bool broadcast_buffers = true;
  /// A promise that every pass reaches the same parameters as often as the first one did, on every rank; the ranks then
  /// need not tell each other after each pass. A pass that breaks it is a ConfigError.
  bool static_graph = false;
  /// Every reduction looks for infinite and NaN values in the gradients, on their device and without waiting for it: a
  /// GPU's rank throws an Error that names the pass and a parameter when the result has come, some passes later or at
  /// the end of the body. Under fp16, whose steps look for them anyway, nothing is looked for.
  bool check_finite = false;
};

}  // namespace tandem::nn
