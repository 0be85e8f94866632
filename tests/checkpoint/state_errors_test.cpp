// States that cannot be saved or loaded.
#include <cerrno>
#include <filesystem>
#include <fstream>

#include <ATen/Functions.h>

#include "checkpoint/state_training.h"
#include "io/scalar_types.h"
#include "support/error_of.h"
#include "support/failing_calls.h"
#include "support/temp_dir.h"

using namespace tandem;
using namespace tandem::test;
using namespace tandem::test::states;
namespace fs = std::filesystem;

namespace {

// A system call that fails, and how; 0: it does a part of what it was asked for.
struct Failing {
  const char* call;
  int error;
};

}  // namespace

TEST_CASE("what was prepared or registered differently is an error, and nothing is changed") {
  const TempDir dir;
  run_ranks(2, [&](Accelerator& accelerator) {
    Small small(accelerator);
    small.train(accelerator);
    accelerator.save_state(dir / "state");
  });
  const auto error_with = [&](const std::function<void(Accelerator&)>& more) {
    return on_ranks<std::string>(2, [&](Accelerator& accelerator) {
      Small small(accelerator);
      const at::Tensor before = small.net->weight.detach().clone();
      more(accelerator);
      std::string text = error_of<CheckpointError>([&] { accelerator.load_state(dir / "state"); });
      if (!at::equal(before, small.net->weight)) text += " and the weights have changed";
      small.train(accelerator);
      return text;
    });
  };
  torch::nn::Linear other(2, 2);
  const auto another_model = error_with([](Accelerator& accelerator) { accelerator.prepare(torch::nn::Linear(2, 2)); });
  CHECK_THAT(another_model[0], ContainsSubstring("is of 1 prepared models, and there are 2"));
  CHECK(another_model[1] == another_model[0]);
  optim::ExponentialMovingAverage average(*other);
  CHECK_THAT(error_with([&](Accelerator& accelerator) { accelerator.register_for_checkpointing(average); })[1],
             ContainsSubstring("is of 0 objects registered for checkpointing, and there are 1"));

  const auto other_class = on_ranks<std::string>(2, [&](Accelerator& accelerator) {
    torch::nn::Linear net(3, 2);
    torch::optim::SGD inner(net->parameters(), 0.1);
    auto [model, optimizer] = accelerator.prepare(net, inner);
    const at::Tensor before = net->weight.detach().clone();
    const std::string text = error_of<CheckpointError>([&] { accelerator.load_state(dir / "state"); });
    return at::equal(before, net->weight) ? text : "the weights have changed";
  });
  CHECK_THAT(other_class[1], ContainsSubstring("parameter group 0 has no 'momentum'"));
  const auto missing = run_ranks_expecting_error(2, [&](Accelerator& accelerator) {
    Small small(accelerator);
    accelerator.load_state(dir / "nowhere");
  });
  CHECK_THAT(missing.what(), ContainsSubstring("nowhere: does not exist"));
}

TEST_CASE("a state cannot be saved in the middle of a window") {
  const TempDir dir;
  const auto error = run_ranks_expecting_error(2, {.gradient_accumulation_steps = 2}, [&](Accelerator& accelerator) {
    Small small(accelerator);
    auto window = accelerator.accumulate(small.model);
    accelerator.save_state(dir / "state");
  });
  CHECK_THAT(error.what(), ContainsSubstring("the accumulation window is open"));
}

TEST_CASE(
    "tensors of all types go through a state, in the background too, what cannot is refused before it is written") {
  const TempDir dir;
  const bool background = GENERATE(false, true);
  const auto some = [](at::ScalarType type) {
    const auto size = static_cast<std::int64_t>(c10::elementSize(type));
    const at::Tensor bytes = at::arange(1, 12 * size + 1, at::kByte);
    return at::empty({0}, type).set_(bytes.storage(), 0, {2, 3}, {6, 2});
  };
  std::vector<at::ScalarType> types;
  for (int i = 0; i < static_cast<int>(at::ScalarType::Undefined); ++i)
    if (!c10::isQIntType(static_cast<at::ScalarType>(i))) types.push_back(static_cast<at::ScalarType>(i));
  std::vector<at::Tensor> loaded;
  const auto object = [&](c10::IValue extra) {
    const auto save = [&, extra] {
      c10::impl::GenericList all(c10::AnyType::get());
      for (const auto type : types) all.push_back(some(type));
      all.push_back(at::complex(at::ones({2}), at::ones({2})).conj());
      all.push_back(extra);
      return c10::IValue(all);
    };
    const auto load = [&](const c10::IValue& state) {
      for (const c10::IValue& one : state.toListRef())
        if (one.isTensor()) loaded.push_back(one.toTensor());
    };
    return StateObject{.save = save, .load = load};
  };
  run_ranks(1, [&](Accelerator& accelerator) {
    Small small(accelerator);
    accelerator.register_state_object(object("no \xff text"));
    accelerator.save_state(dir / "state", {.background = background});
    accelerator.load_state(dir / "state");
    small.train(accelerator);
  });
  REQUIRE(loaded.size() == types.size() + 1);
  for (std::size_t i = 0; i < types.size(); ++i) {
    CAPTURE(c10::toString(types[i]));
    CHECK(loaded[i].scalar_type() == types[i]);
    CHECK(at::equal(io::as_plain(loaded[i]), io::as_plain(some(types[i]))));
  }
  CHECK(at::equal(at::imag(loaded.back()), at::full({2}, -1.0f)));

  const auto refused = [&](const c10::IValue& value, const std::string& hook_file) {
    const auto error = run_ranks_expecting_error(2, [&](Accelerator& accelerator) {
      Small small(accelerator);
      accelerator.register_state_object(object(value));
      accelerator.register_state_hooks({.save = [&] { return StateFiles{{hook_file, "x"}}; }, .load = {}});
      accelerator.save_state(dir / "new", {.background = background});
    });
    return std::string(error.what());
  };
  CHECK_THAT(refused(at::_empty_affine_quantized({2}, at::TensorOptions(at::kQInt8), 0.5, 1), "file"),
             ContainsSubstring("new/custom_checkpoint_0.pkl: cannot be written: value[42] is a quantized tensor"));
  CHECK_THAT(refused(true, "file\xff"), ContainsSubstring(R"(new/tandem_state.json: the text 'file\xff' is no UTF-8)"));
  CHECK(std::distance(std::filesystem::directory_iterator(dir.path()), std::filesystem::directory_iterator()) == 1);
}

TEST_CASE("averages of a model with buffers of types that few have go through a state") {
  const TempDir dir;
  struct Odd : torch::nn::Module {
    explicit Odd(double value) {
      weight = register_parameter("weight", at::full({2}, value));
      for (const auto type : {at::kUInt16, at::kUInt32, at::kUInt64, at::kFloat8_e5m2, at::kFloat8_e4m3fn,
                              at::kFloat8_e8m0fnu, at::kComplexHalf, at::kComplexDouble})
        buffers.push_back(register_buffer(c10::toString(type), at::full({3}, value).to(type)));
    }
    at::Tensor weight;
    std::vector<at::Tensor> buffers;
  };
  run_ranks(1, [&](Accelerator& accelerator) {
    Odd net(2);
    optim::ExponentialMovingAverage average(net);
    accelerator.register_for_checkpointing(average);
    accelerator.save_state(dir / "state");
  });
  run_ranks(1, [&](Accelerator& accelerator) {
    Odd net(0);
    optim::ExponentialMovingAverage average(net);
    accelerator.register_for_checkpointing(average);
    accelerator.load_state(dir / "state");
    for (const auto& [name, kept] : average.averages())
      if (!at::equal(kept.to(at::kComplexDouble), at::full_like(kept, 2, at::kComplexDouble)))
        throw std::logic_error(name);
  });
}

TEST_CASE("a failed save is the same error on all ranks, and training goes on, in the background, at the next call") {
  const TempDir dir;
  std::ofstream(dir / "file") << "somebody's";
  const auto texts = on_ranks<std::vector<std::string>>(2, [&](Accelerator& accelerator) {
    Small small(accelerator);
    small.train(accelerator);
    std::vector<std::string> errors;
    errors.push_back(error_of<CheckpointError>([&] { accelerator.save_state(dir / "file"); }));
    accelerator.save_state(dir / "file/below", {.background = true});
    small.train(accelerator);
    errors.push_back(error_of<CheckpointError>([&] { accelerator.wait_for_saves(); }));
    accelerator.wait_for_saves();  // told once
    accelerator.save_state(dir / "good", {.background = true});
    return errors;
  });
  CHECK(texts[0] == texts[1]);
  CHECK_THAT(texts[0][0], ContainsSubstring("cannot be a checkpoint: it is there already, and no directory"));
  CHECK_THAT(texts[0][1], ContainsSubstring("a save in the background failed"));
  io::CheckpointReader(dir / "good").verify();
  const auto error = run_ranks_expecting_error(2, [&](Accelerator& accelerator) {
    Small small(accelerator);
    accelerator.save_state(dir / "file/below", {.background = true});
  });
  CHECK_THAT(error.what(), ContainsSubstring("a save in the background failed"));
}

TEST_CASE(
    "whichever system call of a save fails, the checkpoint before is there, or the new one, and training goes on") {
  const bool background = GENERATE(false, true);
  const auto failing = GENERATE(Failing{"open", EMFILE}, Failing{"mkdir", EACCES}, Failing{"write", ENOSPC},
                                Failing{"write", EINTR}, Failing{"write", 0}, Failing{"fsync", EIO},
                                Failing{"close", EIO}, Failing{"rename", EIO}, Failing{"symlink", ENOSPC});
  CAPTURE(background, failing.call, failing.error);
  int nth = 0, failures = 0;
  for (bool came = true; came && nth < 200; ++nth) {
    const TempDir dir;
    LaunchConfig config;
    config.checkpoints = {.directory = dir.path(), .total_limit = 1};
    std::string said;
    std::int64_t updates = 0;
    std::vector<at::Tensor> saved(3);
    run_ranks(2, config, [&](Accelerator& accelerator) {
      Small small(accelerator);
      const auto train_and_keep = [&] {
        small.train(accelerator);
        const auto index = static_cast<std::size_t>(small.optimizer.updates());
        if (accelerator.is_main()) saved[index] = small.net->weight.detach().clone();
      };
      train_and_keep();
      accelerator.save_state();
      train_and_keep();
      std::optional<FailingCall> armed;
      if (accelerator.is_main()) armed.emplace(failing.call, nth + 1, failing.error);
      const std::string mine = error_of<CheckpointError>([&] {
        accelerator.save_state({}, {.background = background});
        accelerator.wait_for_saves();
      });
      if (accelerator.is_main()) said = mine, came = armed->came();
      armed.reset();
      accelerator.wait_for_everyone();
      accelerator.load_state();
      if (accelerator.is_main()) updates = small.optimizer.updates();
      if (accelerator.is_main() && !at::equal(small.net->weight, saved[static_cast<std::size_t>(updates)]))
        throw std::logic_error("the weights are of another step than the optimizer");
      small.train(accelerator);
      accelerator.save_state();
    });
    CAPTURE(nth, said);
    REQUIRE(io::list_checkpoints(dir.path()).size() >= 1);
    REQUIRE((updates == 1 || updates == 2));
    if (said.empty()) REQUIRE(updates == 2);
    failures += said.empty() ? 0 : 1;
  }
  CHECK(nth > 1);
  const bool harmless = failing.error == 0 || (failing.error == EINTR && std::string(failing.call) == "write");
  if (harmless)
    CHECK(failures == 0);
  else
    CHECK(failures > 0);
}

TEST_CASE("whichever system call of a load fails or is short, it is an error or does not matter") {
  const auto failing =
      GENERATE(Failing{"open", EMFILE}, Failing{"read", EIO}, Failing{"read", EINTR}, Failing{"read", 0},
               Failing{"pread", EIO}, Failing{"pread", EINTR}, Failing{"pread", 0});
  CAPTURE(failing.call, failing.error);
  const TempDir dir;
  at::Tensor saved;
  run_ranks(2, [&](Accelerator& accelerator) {
    Small small(accelerator);
    small.train(accelerator);
    accelerator.save_state(dir / "state");
    if (accelerator.is_main()) saved = small.net->weight.detach().clone();
  });
  int nth = 0, failures = 0;
  for (bool came = true; came && nth < 200; ++nth) {
    std::string said;
    at::Tensor loaded;
    run_ranks(2, [&](Accelerator& accelerator) {
      Small small(accelerator);
      std::optional<FailingCall> armed;
      if (accelerator.is_main()) armed.emplace(failing.call, nth + 1, failing.error);
      const std::string mine = error_of<CheckpointError>([&] { accelerator.load_state(dir / "state"); });
      if (accelerator.is_main()) said = mine, came = armed->came(), loaded = small.net->weight.detach().clone();
      armed.reset();
      small.train(accelerator);
    });
    CAPTURE(nth, said);
    REQUIRE(at::equal(loaded, saved) == said.empty());
    failures += said.empty() ? 0 : 1;
  }
  CHECK(nth > 1);
  if (failing.error == 0 || (failing.error == EINTR && std::string(failing.call) == "pread"))
    CHECK(failures == 0);
  else if (failing.error != EINTR)
    CHECK(failures > 0);
}

TEST_CASE("every byte of a checkpoint that is flipped is found, and names its file") {
  const TempDir dir;
  run_ranks(1, [&](Accelerator& accelerator) {
    Small small(accelerator);
    small.train(accelerator);
    accelerator.save_state(dir / "state");
  });
  run_ranks(1, [&](Accelerator& accelerator) {
    Small small(accelerator);
    for (const auto& entry : fs::directory_iterator(dir / "state")) {
      std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
      const auto size = static_cast<std::streamoff>(fs::file_size(entry));
      const std::streamoff step = size > 3000 ? 37 : 1;  // of the generators' states, which are long
      for (std::streamoff at = 0; at < size; at += step) {
        const auto flip = [&] {
          file.seekg(at);
          const auto byte = static_cast<char>(file.get() ^ 0x10);
          file.seekp(at);
          file.put(byte).flush();
        };
        flip();
        const auto said = error_of<CheckpointError>([&] { accelerator.load_state(dir / "state"); });
        flip();
        if (said.find(entry.path().filename().string()) == std::string::npos)
          throw std::logic_error(entry.path().string() + ", byte " + std::to_string(at) + ": " + said);
      }
    }
    accelerator.load_state(dir / "state");
  });
}

TEST_CASE("a scheduler that cannot be where the state is stays as it was, as all others do") {
  const TempDir dir;
  const auto with_schedule = [&](std::int64_t total_steps, const auto& use) {
    run_ranks(2, [&](Accelerator& accelerator) {
      torch::nn::Linear net(3, 2);
      torch::optim::SGD first(net->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9)),
          second(net->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
      optim::StepLR decay(first, {.step_size = 2});
      optim::OneCycleLR cycle(second, {.max_lr = {0.5}, .total_steps = total_steps});
      auto [model, a, b, c, d] = accelerator.prepare(net, first, second, decay, cycle);
      use(accelerator, decay, cycle, [&, &c = c, &d = d] {
        c.step();
        d.step();
      });
    });
  };
  with_schedule(100, [&](Accelerator& accelerator, auto&, auto&, const auto& step) {
    for (int i = 0; i < 50; ++i) step();
    accelerator.save_state(dir / "state");
  });
  with_schedule(10, [&](Accelerator& accelerator, auto& decay, auto& cycle, const auto& step) {
    for (int i = 0; i < 3; ++i) step();
    const auto decayed = decay.last_lr(), cycled = cycle.last_lr();
    const auto error = error_of<ConfigError>([&] { accelerator.load_state(dir / "state"); });
    if (error.find("total_steps") == std::string::npos) throw std::logic_error("no error: " + error);
    if (decay.last_lr() != decayed || cycle.last_lr() != cycled) throw std::logic_error("the rates have changed");
    step();
    if (cycle.last_epoch() != 4 || decay.last_epoch() != 4) throw std::logic_error("the schedules have moved");
  });
}

TEST_CASE("an error without a text is one too") {
  const TempDir dir;
  const auto error = run_ranks_expecting_error(2, [&](Accelerator& accelerator) {
    Small small(accelerator);
    accelerator.register_state_hooks({.save = []() -> StateFiles { throw std::runtime_error(""); }, .load = {}});
    accelerator.save_state(dir / "state");
  });
  CHECK(error.rank() >= 0);
  CHECK_FALSE(fs::exists(dir / "state"));
}
