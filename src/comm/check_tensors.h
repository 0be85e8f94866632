// What all communicators ask of the tensors they get. Every function throws CollectiveError, naming the operation.
#pragma once

#include <vector>

#include <ATen/core/Tensor.h>

#include "tandem/comm/reduction.h"

namespace tandem::comm {

/// That `op` is defined for `type`, and a ReduceOp.
void check_reduction(ReduceOp op, c10::ScalarType type);

/// What elements of `type` are to reductions. Throws for those that cannot be reduced.
ElementType element_type(c10::ScalarType type);

/// That all are defined, strided and on `device`.
void check_dense(at::TensorList tensors, c10::Device device, const char* operation);

/// That `root` is a rank.
void check_root(int root, int world_size, const char* operation);

/// That `outputs` are of the types and sizes of `inputs`, and on `device`.
void check_outputs(at::TensorList inputs, at::TensorList outputs, c10::Device device);

/// That both are rows of equally many elements of the same type, without gaps, and on `device`.
void check_rows(at::TensorList inputs, at::TensorList outputs, c10::Device device);

/// That reduce_scatter can divide `input`.
void check_divides(const at::Tensor& input, int world_size);

/// That all_to_all got a tensor for each rank.
void check_one_a_rank(at::TensorList inputs, int world_size);

/// Whether a tensor's memory is its elements, in order: conjugation and negation may be pending.
bool is_plain(const at::Tensor& tensor);

/// The tensor without its graph, or a copy, so that it is plain.
at::Tensor plain(const at::Tensor& tensor);

/// Each of `tensors`, plain.
std::vector<at::Tensor> all_plain(at::TensorList tensors);

/// Writes those of `all_plain(tensors)` that are copies back to what they are copies of.
void copy_back(const std::vector<at::Tensor>& plain, at::TensorList tensors);

}  // namespace tandem::comm
