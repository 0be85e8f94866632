// A language model of characters with an LSTM, whose state goes on from one piece of the text to the next: each rank
// reads texts of its own from front to end, so there is no data loader.
//
//     language_model TEXT [EPOCHS] [RANKS]
//
// TEXT is any file. The ranks together read kColumns places of it side by side, whatever their number, so the losses
// are the same on 1, 2, 4 and 8 of them, up to rounding.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <tuple>

#include <tandem/tandem.h>
#include <torch/torch.h>

namespace {

constexpr int kColumns = 8;  // places that are read at the same time
constexpr int kPiece = 32;   // characters a step and place
constexpr int kHidden = 64;

struct ModelImpl : torch::nn::Module {
  using State = std::tuple<torch::Tensor, torch::Tensor>;

  ModelImpl() {
    embedding = register_module("embedding", torch::nn::Embedding(256, kHidden));
    lstm = register_module("lstm", torch::nn::LSTM(kHidden, kHidden));
    head = register_module("head", torch::nn::Linear(kHidden, 256));
  }

  // characters [T, B] and the state before them: scores [T, B, 256] of the characters after them, and the state.
  std::tuple<torch::Tensor, State> forward(const torch::Tensor& characters, const State& state) {
    auto [out, next] = lstm(embedding(characters), state);
    return {head(out), next};
  }

  torch::nn::Embedding embedding{nullptr};
  torch::nn::LSTM lstm{nullptr};
  torch::nn::Linear head{nullptr};
};
TORCH_MODULE(Model);

// [kColumns, characters]: the text in rows that follow each other.
torch::Tensor read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  const auto length = static_cast<std::int64_t>(text.size()) / kColumns;
  if (length <= kPiece) return {};
  return torch::from_blob(const_cast<char*>(text.data()), {kColumns, length}, torch::kByte).to(torch::kLong);
}

}  // namespace

int main(int argc, char** argv) {
  const torch::Tensor text = argc > 1 ? read(argv[1]) : torch::Tensor();
  if (!text.defined()) {
    std::fprintf(stderr, "language_model TEXT [EPOCHS] [RANKS]: TEXT is a file of %d characters or more\n",
                 kColumns * (kPiece + 1));
    return 2;
  }
  const int epochs = argc > 2 ? std::atoi(argv[2]) : 3;
  const int ranks = argc > 3 ? std::atoi(argv[3]) : 2;

  tandem::launch({.cpu = ranks, .seed = 1}, [&](tandem::Accelerator& accelerator) {
    Model net;
    torch::optim::Adam adam(net->parameters(), 3e-3);
    auto [model, optimizer] = accelerator.prepare(net, adam);

    const auto rows = accelerator.split_between_ranks(text).t().contiguous();  // this rank's places, [characters, B]
    for (int epoch = 0; epoch < epochs; ++epoch) {
      auto state = ModelImpl::State(torch::zeros({1, rows.size(1), kHidden}), torch::zeros({1, rows.size(1), kHidden}));
      double sum = 0, characters = 0;
      for (std::int64_t at = 0; at + 1 < rows.size(0); at += kPiece) {
        const auto length = std::min<std::int64_t>(kPiece, rows.size(0) - 1 - at);
        const auto window = accelerator.accumulate(model);
        const auto [scores, next] = model(rows.narrow(0, at, length), state);
        state = {std::get<0>(next).detach(), std::get<1>(next).detach()};  // gradients end at the piece's beginning
        const auto loss = torch::nn::functional::cross_entropy(
            scores.view({-1, 256}), rows.narrow(0, at + 1, length).reshape({-1}),
            torch::nn::functional::CrossEntropyFuncOptions().reduction(torch::kSum));
        // A sum and what it is over: the gradient is the mean over all ranks' characters, however the text divides.
        accelerator.backward(loss, static_cast<double>(length * rows.size(1)));
        accelerator.clip_grad_norm_(model, 1.0);
        optimizer.step();
        optimizer.zero_grad();
        sum += loss.item<double>();
        characters += static_cast<double>(length * rows.size(1));
      }
      const auto all = accelerator.reduce(torch::tensor({sum, characters}, torch::kDouble));
      accelerator.print("epoch ", epoch, ", loss a character ", (all[0] / all[1]).item<double>());
    }
  });
}
