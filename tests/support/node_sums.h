// Sums over the ranks of several nodes, against those of one process with all ranks.
#pragma once

#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "comm/nodes/chain.h"
#include "comm/reduction_arithmetic.h"

namespace tandem::test {

using comm::ElementRow;
using comm::ElementType;
using comm::ReduceOp;

inline constexpr ElementType kAllTypes[] = {
    ElementType::float32,    ElementType::float64, ElementType::float16, ElementType::bfloat16, ElementType::complex64,
    ElementType::complex128, ElementType::int8,    ElementType::int16,   ElementType::int32,    ElementType::int64,
    ElementType::uint8,      ElementType::uint16,  ElementType::uint32,  ElementType::uint64,   ElementType::boolean};

inline bool is_real(ElementType type) { return type <= ElementType::bfloat16; }
inline bool is_complex(ElementType type) { return type == ElementType::complex64 || type == ElementType::complex128; }

inline std::vector<ReduceOp> ops_of(ElementType type) {
  std::vector<ReduceOp> ops{ReduceOp::sum, ReduceOp::product};
  if (is_real(type) || is_complex(type)) ops.push_back(ReduceOp::mean);
  if (!is_complex(type)) ops.insert(ops.end(), {ReduceOp::max, ReduceOp::min});
  return ops;
}

// Values of very different sizes, so that the order of a sum shows.
inline void fill(std::byte* to, ElementType type, std::int64_t elements, std::mt19937& random) {
  const auto real = [&] { return std::ldexp(static_cast<int>(random()), -24 - static_cast<int>(random() % 12)); };
  const auto write = [&](auto value) {
    std::memcpy(to, &value, sizeof value);
    to += sizeof value;
  };
  for (std::int64_t i = 0; i < elements; ++i) switch (type) {
      case ElementType::float32: write(static_cast<float>(real())); break;
      case ElementType::float64: write(real()); break;
      case ElementType::float16:
        write(comm::arithmetic::narrow(static_cast<float>(real()), comm::arithmetic::Float16{}));
        break;
      case ElementType::bfloat16:
        write(comm::arithmetic::narrow(static_cast<float>(real()), comm::arithmetic::BFloat16{}));
        break;
      case ElementType::complex64:
        write(static_cast<float>(real()));
        write(static_cast<float>(real()));
        break;
      case ElementType::complex128:
        write(real());
        write(real());
        break;
      case ElementType::boolean: write(static_cast<std::uint8_t>(random() % 2)); break;
      default:
        for (std::size_t byte = 0; byte < comm::size_of(type); ++byte) write(static_cast<std::uint8_t>(random()));
    }
}

struct RowKind {
  ElementType type;
  std::int64_t elements;
};

// All that one rank has: inputs, outputs and squares of each row.
struct RankRows {
  std::vector<std::vector<std::byte>> in, out;
  std::vector<std::vector<double>> sums;
  std::vector<ElementRow> inputs, outputs;
  std::vector<double*> squares;
  comm::SharedReducer::Lists lists;

  RankRows(const std::vector<RowKind>& rows, ReduceOp op, int rank, bool with_squares) {
    std::mt19937 random(static_cast<unsigned>(rank) * 977 + 13);
    for (const auto& [type, elements] : rows) {
      const std::size_t bytes = static_cast<std::size_t>(elements) * comm::size_of(type);
      in.emplace_back(bytes);
      fill(in.back().data(), type, elements, random);
      out.emplace_back(bytes, std::byte{0x5a});
      sums.emplace_back(static_cast<std::size_t>((elements + comm::kReductionBlock - 1) / comm::kReductionBlock), -1.0);
    }
    for (std::size_t i = 0; i < rows.size(); ++i) {
      inputs.push_back({in[i].data(), rows[i].elements, rows[i].type});
      outputs.push_back({out[i].data(), rows[i].elements, rows[i].type});
      squares.push_back(sums[i].data());
    }
    lists = {inputs, outputs, op, {}};
    if (with_squares) lists.squares = squares;
  }
  RankRows(RankRows&&) = default;
};

inline std::vector<RankRows> rows_of(const std::vector<RowKind>& rows, ReduceOp op, int ranks, bool with_squares) {
  std::vector<RankRows> all;
  all.reserve(static_cast<std::size_t>(ranks));
  for (int rank = 0; rank < ranks; ++rank) all.emplace_back(rows, op, rank, with_squares);
  return all;
}

// What one process with all ranks has, by its own loops.
inline void reduce_in_one_process(std::vector<RankRows>& ranks) {
  for (std::size_t row = 0; row < ranks[0].in.size(); ++row) {
    std::vector<const void*> inputs;
    std::vector<void*> outputs;
    std::vector<double*> squares;
    for (RankRows& rank : ranks) {
      inputs.push_back(rank.in[row].data());
      outputs.push_back(rank.out[row].data());
      if (!rank.lists.squares.empty()) squares.push_back(rank.sums[row].data());
    }
    const ElementRow& kind = ranks[0].inputs[row];
    if (squares.empty())
      comm::reduce_elements(kind.type, ranks[0].lists.op, inputs, outputs, 0, kind.elements);
    else
      comm::reduce_with_squares(kind.type, ranks[0].lists.op, inputs, outputs, squares, 0, kind.elements);
  }
}

// Reduces over nodes, a thread each; `link_of` gives their links. Exceptions of any are the caller's.
inline void reduce_over_nodes(std::vector<RankRows>& ranks, const std::vector<int>& ranks_of_nodes,
                              const std::function<comm::NodeLink&(int)>& link_of) {
  std::vector<std::thread> threads;
  std::vector<std::exception_ptr> errors(ranks_of_nodes.size());
  std::size_t first = 0;
  for (std::size_t node = 0; node < ranks_of_nodes.size(); ++node) {
    std::vector<const comm::SharedReducer::Lists*> mine;
    for (int rank = 0; rank < ranks_of_nodes[node]; ++rank) mine.push_back(&ranks[first++].lists);
    threads.emplace_back([&, node, mine] {
      try {
        comm::NodeChain(link_of(static_cast<int>(node)), ranks_of_nodes).reduce(mine);
      } catch (...) {
        errors[node] = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
}

// How many ranks have other bits than in one process.
inline int wrong_ranks(const std::vector<RankRows>& got, const std::vector<RankRows>& wanted) {
  int wrong = 0;
  for (std::size_t rank = 0; rank < got.size(); ++rank)
    wrong +=
        got[rank].out != wanted[rank].out || got[rank].sums != wanted[rank].sums || got[rank].in != wanted[rank].in;
  return wrong;
}

}  // namespace tandem::test
