#pragma once

#include <random>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include "tandem/comm/reduction.h"

namespace tandem::test {

inline const std::vector<at::ScalarType> kTypes{at::kFloat, at::kDouble, at::kHalf,         at::kBFloat16,
                                                at::kLong,  at::kInt,    at::kShort,        at::kChar,
                                                at::kByte,  at::kBool,   at::kComplexFloat, at::kComplexDouble};

/// A CPU tensor of a random shape, perhaps not contiguous: of the same shape on every rank for the same state of
/// `random`.
inline at::Tensor random_tensor(std::mt19937& random, at::ScalarType type, int rank) {
  const std::vector<std::vector<std::int64_t>> shapes{{}, {0}, {1}, {5}, {3, 4}, {2, 0, 3}, {2, 3, 4}, {30, 1}, {7001}};
  const auto shape = shapes[random() % shapes.size()];
  const bool strided = random() % 2;
  auto generator = at::make_generator<at::CPUGeneratorImpl>(random() + static_cast<unsigned>(rank) * 7919);
  at::Tensor tensor = at::randint(-9, 9, shape, generator, at::kDouble);
  if (type == at::kByte || type == at::kBool) tensor = tensor.abs();
  if (type == at::kBool) tensor = tensor.gt(4);
  if (c10::isFloatingType(type)) tensor = tensor / 3;
  tensor = tensor.to(type);
  if (!strided || tensor.dim() == 0) return tensor;
  return tensor.dim() > 1 ? tensor.transpose(0, -1) : at::stack({tensor, tensor}, 1).select(1, 0);
}

inline bool defined_for(comm::ReduceOp op, at::ScalarType type) {
  if (op == comm::ReduceOp::mean) return c10::isFloatingType(type) || c10::isComplexType(type);
  if (op == comm::ReduceOp::max || op == comm::ReduceOp::min) return !c10::isComplexType(type);
  return true;
}

}  // namespace tandem::test
