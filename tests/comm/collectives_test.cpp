// Every collective against its definition, on random shapes and types.
#include <random>

#include "support/random_tensors.h"
#include "support/ranks.h"
#include "tandem/comm/communicator.h"
#include "tandem/comm/object_bytes.h"

using namespace tandem;
using namespace tandem::test;
using comm::ReduceOp;

namespace {

at::Tensor expected_reduction(const std::vector<at::Tensor>& inputs, ReduceOp op) {
  const auto type = inputs[0].scalar_type();
  const bool narrow = type == at::kHalf || type == at::kBFloat16;
  at::Tensor total = narrow ? inputs[0].to(at::kFloat) : inputs[0].clone();
  for (std::size_t i = 1; i < inputs.size(); ++i) {
    const at::Tensor next = narrow ? inputs[i].to(at::kFloat) : inputs[i];
    if (op == ReduceOp::max)
      total = at::maximum(total, next);
    else if (op == ReduceOp::min)
      total = at::minimum(total, next);
    else if (type == at::kBool)
      total = op == ReduceOp::product ? at::logical_and(total, next) : at::logical_or(total, next);
    else if (op == ReduceOp::product)
      total = total * next;
    else
      total = total + next;
  }
  const auto count = static_cast<double>(inputs.size());
  if (op == ReduceOp::mean)  // of a complex number the mean of its parts
    total = total.is_complex() ? at::view_as_complex(at::view_as_real(total) / count) : total / count;
  return total.to(type);
}

struct Sample {
  at::Tensor image;
  std::vector<at::Tensor> boxes;
  std::string name;
};
auto batch_fields(Sample& s) { return std::tie(s.image, s.boxes); }

}  // namespace

TEST_CASE("reduce gives every rank the reduction in rank order, and leaves its input") {
  const int ranks = GENERATE(1, 2, 3, 5, 8);
  for (const auto op : {ReduceOp::sum, ReduceOp::mean, ReduceOp::max, ReduceOp::min, ReduceOp::product})
    for (const auto type : kTypes) {
      if (!defined_for(op, type)) continue;
      const unsigned seed =
          static_cast<unsigned>(ranks) * 1000 + static_cast<unsigned>(type) * 10 + static_cast<unsigned>(op);
      std::vector<std::vector<at::Tensor>> inputs(6);
      for (int rank = 0; rank < ranks; ++rank) {
        std::mt19937 random(seed);
        for (auto& of_all : inputs) of_all.push_back(random_tensor(random, type, rank));
      }
      const auto results = on_ranks<std::vector<at::Tensor>>(ranks, [&](Accelerator& accelerator) {
        std::vector<at::Tensor> mine;
        for (const auto& of_all : inputs) mine.push_back(of_all[static_cast<std::size_t>(accelerator.rank())]);
        auto before = mine;
        for (auto& tensor : before) tensor = tensor.clone();
        auto reduced = accelerator.reduce(mine, op);
        for (std::size_t i = 0; i < mine.size(); ++i)
          if (!at::equal(mine[i], before[i])) throw std::runtime_error("input changed");
        return reduced;
      });
      CAPTURE(ranks, c10::toString(type), comm::to_string(op));
      for (std::size_t i = 0; i < inputs.size(); ++i)
        for (const auto& result : results) CHECK(at::equal(result[i], expected_reduction(inputs[i], op)));
    }
}

TEST_CASE("sums and products of tensors of integers wrap around, as LibTorch's do") {
  for (const auto type : kTypes) {
    if (!at::isIntegralType(type, /*includeBool=*/false)) continue;
    CAPTURE(c10::toString(type));
    std::vector<at::Tensor> inputs;  // any bits
    auto generator = at::make_generator<at::CPUGeneratorImpl>(7);
    for (int rank = 0; rank < 3; ++rank) inputs.push_back(at::randint(256, {800}, generator, at::kByte).view(type));
    const at::Tensor exact = inputs[0].to(at::kDouble) + inputs[1].to(at::kDouble) + inputs[2].to(at::kDouble);
    REQUIRE_FALSE(at::allclose(expected_reduction(inputs, ReduceOp::sum).to(at::kDouble), exact));
    for (const auto op : {ReduceOp::sum, ReduceOp::product})
      for (const auto& result : on_ranks<at::Tensor>(
               3, [&](Accelerator& a) { return a.reduce(inputs[static_cast<std::size_t>(a.rank())], op); }))
        CHECK(at::equal(result, expected_reduction(inputs, op)));
  }
}

TEST_CASE("a reduction that is not defined for a type is an error, on one rank too") {
  const int ranks = GENERATE(1, 2);
  const auto mean =
      run_ranks_expecting_error(ranks, [](Accelerator& a) { a.reduce(at::ones({2}, at::kLong), ReduceOp::mean); });
  CHECK_THAT(mean.what(), ContainsSubstring("mean of Long"));
  const auto max = run_ranks_expecting_error(
      ranks, [](Accelerator& a) { a.reduce(at::ones({2}, at::kComplexFloat), ReduceOp::max); });
  CHECK_THROWS_AS(max.rethrow_cause(), CollectiveError);
  const auto unknown =
      run_ranks_expecting_error(ranks, [](Accelerator& a) { a.reduce(at::ones({2}), static_cast<ReduceOp>(9)); });
  CHECK_THAT(unknown.what(), ContainsSubstring("use sum, mean, max, min or product"));
}

TEST_CASE("a NaN on any rank reaches max and min") {
  const auto results = on_ranks<std::vector<float>>(3, [](Accelerator& a) {
    const auto x = at::full({1}, a.rank() == 1 ? NAN : 1.0f);
    return std::vector<float>{a.reduce(x, ReduceOp::max).item<float>(), a.reduce(x, ReduceOp::min).item<float>()};
  });
  for (float value : results[0]) CHECK(std::isnan(value));
}

TEST_CASE("broadcast overwrites on the receivers, whatever their strides") {
  const int root = GENERATE(0, 1, 2);
  for (const auto type : kTypes) {
    std::mt19937 random(7);
    const auto results = on_ranks<at::Tensor>(3, [&](Accelerator& accelerator) {
      at::Tensor tensor = at::full({3, 4}, accelerator.rank() + 1, type).transpose(0, 1);
      accelerator.broadcast(tensor, root);
      return tensor;
    });
    for (const auto& result : results) CHECK(at::equal(result, at::full({4, 3}, root + 1, type)));
  }
  const auto error = run_ranks_expecting_error(2, [](Accelerator& a) {
    auto x = at::ones({1});
    a.broadcast(x, 2);
  });
  CHECK_THAT(error.what(), ContainsSubstring("ranks are 0 to 1"));
}

TEST_CASE("gather joins along dim 0 in rank order, also where ranks differ in it") {
  const int ranks = GENERATE(1, 2, 4);
  using Nest = std::map<std::string, std::vector<at::Tensor>>;
  const auto results = on_ranks<Nest>(ranks, [](Accelerator& accelerator) {
    const int r = accelerator.rank();
    return accelerator.gather(
        Nest{{"a", {at::full({2, 3}, r), at::scalar_tensor(r, at::kLong)}}, {"b", {at::full({r, 2}, r)}}});
  });
  std::vector<at::Tensor> a, b, s;
  for (int r = 0; r < ranks; ++r) {
    a.push_back(at::full({2, 3}, r));
    b.push_back(at::full({r, 2}, r));
    s.push_back(at::scalar_tensor(r, at::kLong));
  }
  for (const auto& result : results) {
    CHECK(at::equal(result.at("a")[0], at::cat(a)));
    CHECK(at::equal(result.at("a")[1], at::stack(s)));
    CHECK(at::equal(result.at("b")[0], at::cat(b)));
  }
}

TEST_CASE("reduce_scatter gives each rank its part of the reduction") {
  const int ranks = GENERATE(1, 2, 4);
  for (const auto type : {at::kFloat, at::kBFloat16, at::kLong}) {
    const auto inputs = [&](int rank) { return at::arange(8 * 3).reshape({8, 3}).to(type) + rank; };
    const auto results = on_ranks<at::Tensor>(ranks, [&](Accelerator& accelerator) {
      return accelerator.communicator().reduce_scatter(inputs(accelerator.rank()), ReduceOp::sum);
    });
    std::vector<at::Tensor> all;
    for (int rank = 0; rank < ranks; ++rank) all.push_back(inputs(rank));
    const auto expected = expected_reduction(all, ReduceOp::sum);
    for (int rank = 0; rank < ranks; ++rank)
      CHECK(at::equal(results[static_cast<std::size_t>(rank)],
                      expected.slice(0, rank * 8 / ranks, (rank + 1) * 8 / ranks)));
  }
  const auto error = run_ranks_expecting_error(
      2, [](Accelerator& a) { a.communicator().reduce_scatter(at::ones({3}), ReduceOp::sum); });
  CHECK_THAT(error.what(), ContainsSubstring("divisible by 2"));
}

TEST_CASE("several tensors of several types are reduced in one call, in place or into others, or to one rank") {
  const int ranks = GENERATE(1, 2, 3);
  const std::int64_t length = GENERATE(10, 100'000);  // by mail and in place
  const auto inputs = [&](int rank) {
    return std::vector<at::Tensor>{at::arange(length, at::kFloat) + rank, at::full({3}, rank, at::kLong),
                                   at::arange(2 * length).reshape({2, length}).t() * (rank + 1), at::empty({0})};
  };
  std::vector<at::Tensor> expected;
  for (std::size_t i = 0; i < 4; ++i) {
    std::vector<at::Tensor> all;
    for (int rank = 0; rank < ranks; ++rank) all.push_back(inputs(rank)[i]);
    expected.push_back(expected_reduction(all, ReduceOp::sum));
  }
  const auto equal = [](const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                      [](const at::Tensor& x, const at::Tensor& y) { return at::equal(x, y); });
  };
  const auto right = on_ranks<std::vector<bool>>(ranks, [&](Accelerator& accelerator) {
    auto& communicator = accelerator.communicator();
    const int rank = accelerator.rank(), root = ranks - 1;
    auto in_place = inputs(rank), rooted = inputs(rank), outputs = inputs(rank);
    const auto kept = inputs(rank);
    communicator.all_reduce(in_place, ReduceOp::sum);
    for (auto& output : outputs) output.zero_();
    communicator.all_reduce(kept, outputs, ReduceOp::sum);
    communicator.reduce(rooted, ReduceOp::sum, root);
    return std::vector<bool>{equal(in_place, expected), equal(outputs, expected), equal(kept, inputs(rank)),
                             equal(rooted, rank == root ? expected : inputs(rank))};
  });
  CHECK(right == std::vector<std::vector<bool>>(static_cast<std::size_t>(ranks), {true, true, true, true}));
}

TEST_CASE("pending conjugations and negations count") {
  const auto numbers = [](int rank) {
    return at::complex(at::arange(3, at::kFloat) + rank, at::arange(3, at::kFloat) - 7);
  };
  const auto right = on_ranks<bool>(2, [&](Accelerator& accelerator) {
    auto& communicator = accelerator.communicator();
    at::Tensor mine = numbers(accelerator.rank()).conj(), sum = at::empty({3}, at::kComplexFloat);
    const at::Tensor negative = at::imag(mine);  // a negation is pending
    const at::Tensor expected = (numbers(0) + numbers(1)).conj().resolve_conj();
    communicator.all_reduce(mine, sum, ReduceOp::sum);
    at::Tensor negative_sum = at::empty({3});
    communicator.all_reduce(negative, negative_sum, ReduceOp::sum);
    communicator.all_reduce(mine, ReduceOp::sum);
    return at::equal(sum, expected) && at::equal(mine.resolve_conj(), expected) &&
           at::equal(negative_sum, at::imag(expected));
  });
  CHECK(right == std::vector<bool>{true, true});
}

TEST_CASE("a body that swallows the error of a mismatch cannot go on") {
  const auto error = run_ranks_expecting_error(2, [](Accelerator& accelerator) {
    if (accelerator.rank() == 1) {
      at::Tensor tensor = at::ones({3});
      accelerator.broadcast(tensor);
    }
    try {
      accelerator.wait_for_everyone();
    } catch (const CollectiveError&) {
    }
    accelerator.gather_objects(std::string("text"));
  });
  CHECK_THAT(error.what(), ContainsSubstring("different collective calls"));
}

TEST_CASE("roots that are no ranks, and outputs unlike the inputs, are errors that say so") {
  const auto text_of = [](const std::function<void(comm::Communicator&)>& call) {
    return std::string(
        run_ranks_expecting_error(2, [&](Accelerator& accelerator) { call(accelerator.communicator()); }).what());
  };
  at::Tensor one = at::ones({2}), other = at::ones({3});
  CHECK_THAT(text_of([&](auto& c) { c.reduce(one, ReduceOp::sum, 2); }), ContainsSubstring("ranks are 0 to 1"));
  CHECK_THAT(text_of([&](auto& c) { c.all_reduce(one, other, ReduceOp::sum); }), ContainsSubstring("must be alike"));
  CHECK_THAT(text_of([&](auto& c) { c.all_to_all({one}); }), ContainsSubstring("a tensor a rank, 2, got 1"));
}

TEST_CASE("all_to_all gives each rank what the others have for it, of any sizes") {
  const int ranks = GENERATE(1, 2, 5);
  const auto from_to = [](int from, int to) { return at::full({from + 1, to}, 10 * from + to); };
  const auto right = on_ranks<bool>(ranks, [&](Accelerator& accelerator) {
    std::vector<at::Tensor> inputs;
    for (int to = 0; to < ranks; ++to) inputs.push_back(from_to(accelerator.rank(), to));
    const auto received = accelerator.communicator().all_to_all(inputs);
    bool all = received.size() == inputs.size();
    for (int from = 0; from < ranks; ++from)
      all = all && at::equal(received[static_cast<std::size_t>(from)], from_to(from, accelerator.rank()));
    return all;
  });
  CHECK(right == std::vector<bool>(static_cast<std::size_t>(ranks), true));
}

TEST_CASE("objects of any copyable type are gathered and broadcast") {
  struct Thing {
    std::string name;
    std::vector<int> values;
  };
  const auto results = on_ranks<std::vector<std::string>>(3, [](Accelerator& accelerator) {
    const int r = accelerator.rank();
    std::vector<std::string> seen;
    for (const auto& thing : accelerator.gather_objects(Thing{"rank " + std::to_string(r), {r, r}}))
      seen.push_back(thing.name + ":" + std::to_string(thing.values.at(1)));
    seen.push_back(accelerator.broadcast_object(std::string(1, static_cast<char>('a' + r)), 2));
    return seen;
  });
  for (const auto& seen : results) CHECK(seen == std::vector<std::string>{"rank 0:0", "rank 1:1", "rank 2:2", "c"});
}

TEST_CASE("objects of different types are a mismatch, not a cast") {
  const auto error = run_ranks_expecting_error(2, [](Accelerator& accelerator) {
    if (accelerator.is_main())
      accelerator.gather_objects(1);
    else
      accelerator.gather_objects(std::string("x"));
  });
  CHECK_THROWS_AS(error.rethrow_cause(), CollectiveError);
}

TEST_CASE("an object whose copy throws on one rank ends all ranks") {
  struct Fragile {
    bool bad = false;
    Fragile() = default;
    Fragile(const Fragile& other) : bad(other.bad) {
      if (bad) throw std::runtime_error("cannot be copied");
    }
  };
  const auto error = run_ranks_expecting_error(3, [](Accelerator& accelerator) {
    Fragile fragile;
    fragile.bad = accelerator.rank() == 1;
    accelerator.gather_objects(fragile);
    accelerator.wait_for_everyone();
  });
  CHECK_THAT(error.what(), ContainsSubstring("cannot be copied"));
}

TEST_CASE("pad_across_ranks pads one dim to the longest rank, at the end or the front") {
  const auto results = on_ranks<std::vector<at::Tensor>>(3, [](Accelerator& accelerator) {
    const auto x = at::ones({2, accelerator.rank() + 1});
    return std::vector<at::Tensor>{accelerator.pad_across_ranks(x, 1, -1.0),
                                   accelerator.pad_across_ranks(x, -1, 0.0, true),
                                   accelerator.pad_across_ranks(at::scalar_tensor(1.0))};
  });
  CHECK(at::equal(results[0][0], torch::tensor({{1.f, -1.f, -1.f}, {1.f, -1.f, -1.f}})));
  CHECK(at::equal(results[1][1], torch::tensor({{0.f, 1.f, 1.f}, {0.f, 1.f, 1.f}})));
  CHECK(at::equal(results[2][0], at::ones({2, 3})));
  CHECK(results[0][2].dim() == 0);
}

TEST_CASE("a trigger set on any rank is seen by all, once") {
  const auto results = on_ranks<std::vector<int>>(3, [](Accelerator& accelerator) {
    std::vector<int> seen{accelerator.check_trigger()};
    if (accelerator.rank() == 1) accelerator.set_trigger();
    seen.push_back(accelerator.check_trigger());
    seen.push_back(accelerator.check_trigger());
    return seen;
  });
  for (const auto& seen : results) CHECK(seen == std::vector<int>{0, 1, 0});
}

TEST_CASE("main_first runs rank 0 before the others") {
  std::atomic<int> order{0};
  const auto turns =
      on_ranks<int>(4, [&](Accelerator& accelerator) { return accelerator.main_first([&] { return order++; }); });
  CHECK(turns[0] == 0);
  const auto error = run_ranks_expecting_error(3, [](Accelerator& accelerator) {
    accelerator.main_first([&] {
      if (accelerator.is_main()) throw std::runtime_error("no disk");
    });
  });
  CHECK(error.rank() == 0);
}

TEST_CASE("what main_first throws on rank 0 ends all ranks, also when rank 0's body catches it") {
  const auto error = run_ranks_expecting_error(3, [](Accelerator& accelerator) {
    try {
      accelerator.main_first([&] {
        if (accelerator.is_main()) throw std::runtime_error("no disk");
      });
    } catch (const std::runtime_error&) {
      if (!accelerator.is_main()) throw;
    }
  });
  CHECK(error.rank() == 0);
  CHECK_THAT(error.what(), ContainsSubstring("no disk"));
}

TEST_CASE("split_between_ranks deals consecutive shares, padded with the last item on request") {
  using List = std::vector<int>;
  const auto split = [](int ranks, List items, bool padding) {
    return on_ranks<List>(ranks, [&](Accelerator& a) { return a.split_between_ranks(items, padding); });
  };
  CHECK(split(3, {0, 1, 2, 3, 4, 5, 6}, true) == std::vector<List>{{0, 1, 2}, {3, 4, 6}, {5, 6, 6}});
  CHECK(split(3, {0, 1, 2, 3, 4, 5, 6}, false) == std::vector<List>{{0, 1, 2}, {3, 4}, {5, 6}});
  CHECK(split(3, {}, true) == std::vector<List>{{}, {}, {}});
  const auto rows = on_ranks<at::Tensor>(3, [](Accelerator& a) { return a.split_between_ranks(at::arange(7), true); });
  CHECK(at::equal(rows[1], at::tensor({3, 4, 6}, at::kLong)));
  CHECK(at::equal(rows[2], at::tensor({5, 6, 6}, at::kLong)));
}

TEST_CASE("a struct of tensors takes part through batch_fields") {
  const auto results = on_ranks<Sample>(2, [](Accelerator& accelerator) {
    const int r = accelerator.rank();
    return accelerator.gather(Sample{at::full({1, 2}, r), {at::full({r + 1, 4}, r)}, "x"});
  });
  CHECK(at::equal(results[0].image, torch::tensor({{0, 0}, {1, 1}})));
  CHECK(results[1].boxes[0].size(0) == 3);
  CHECK(results[1].name == "x");
}

TEST_CASE("tensors as bytes come back as they lay in memory, without what was around them") {
  const at::Tensor rows = at::arange(60 * 33, at::kFloat).view({60, 33});
  struct Case {
    at::Tensor tensor;
    bool keeps_strides = true;
  };
  const std::vector<Case> cases{{rows},
                                {rows.t()},
                                {rows.slice(0, 7, 20)},
                                {rows.slice(1, 1, 33)},                        // with gaps
                                {rows.slice(1, 3, 4), false},                  // with more gaps than elements
                                {rows.slice(0, 5, 6).expand({8, 33}), false},  // rows that are one
                                {rows.view(-1).slice(0, 11, 1023)},            // begins anywhere
                                {rows.view({60, 3, 11, 1}).contiguous(at::MemoryFormat::ChannelsLast)},
                                {at::scalar_tensor(3.5, at::kDouble)},
                                {at::empty({0, 4}, at::kLong)},
                                {at::ones({9}, at::kBool)},
                                {rows.to(at::kBFloat16)},
                                {at::complex(rows, rows)}};
  for (const auto& [tensor, keeps_strides] : cases) {
    INFO(tensor.sizes() << " " << tensor.strides());
    const std::string bytes = comm::pack(tensor, 7);
    at::Tensor back;
    int seven = 0;
    comm::unpack(bytes, back, seven);
    CHECK((at::equal(back, tensor) && back.scalar_type() == tensor.scalar_type() && seven == 7));
    CHECK(bytes.size() < tensor.nbytes() + 200);
    CHECK(back.storage().nbytes() <= 2 * tensor.nbytes() + 256);
    CHECK((back.strides() == tensor.strides()) == keeps_strides);
    CHECK(reinterpret_cast<std::uintptr_t>(back.const_data_ptr()) % 64 ==
          reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr()) % 64);
  }
  at::Tensor sparse, nothing = rows;
  comm::unpack(comm::pack(rows.to_sparse(), at::Tensor()), sparse, nothing);
  CHECK((sparse.is_sparse() && at::equal(sparse.to_dense(), rows) && !nothing.defined()));
}

TEST_CASE("bytes that are no tensor are an error, or another tensor, and never more memory than they have") {
  const std::string bytes = comm::pack(at::arange(24).view({2, 3, 4}).transpose(0, 1));
  std::mt19937 random(5);
  for (int i = 0; i < 3000; ++i) {
    std::string other = bytes.substr(0, i % 4 == 0 ? random() % bytes.size() : bytes.size());
    for (unsigned changes = 1 + random() % 3; changes > 0 && !other.empty(); --changes)
      other[random() % std::min<std::size_t>(other.size(), 90)] = static_cast<char>(random());
    at::Tensor back;
    try {
      comm::unpack(other, back);
    } catch (const std::exception&) {
      continue;
    }
    if (back.defined() && back.has_storage()) CHECK(back.storage().nbytes() <= 4 * bytes.size());
  }
}
