#include <tandem/tandem.h>
#include <torch/torch.h>

int main() {
  using tandem::data::mnist;
  const auto train_set = mnist("data/mnist");  // one copy for all ranks
  const auto test_set = mnist("data/mnist", {.split = tandem::data::MnistSplit::test});

  tandem::launch({.cpu = 2, .seed = 42}, [&](tandem::Accelerator& accelerator) {
    torch::nn::Sequential net(torch::nn::Flatten(), torch::nn::Linear(784, 128), torch::nn::ReLU(),
                              torch::nn::Linear(128, 10));
    torch::optim::AdamW adamw(net->parameters(), 2e-3);
    tandem::optim::CosineAnnealingLR cosine(adamw, {.T_max = 469});
    tandem::data::DataLoader train_data(train_set, {.batch_size = 64, .shuffle = true});
    tandem::data::DataLoader test_data(test_set, {.batch_size = 500});

    auto [model, optimizer, scheduler, train_batches, test_batches] =
        accelerator.prepare(net, adamw, cosine, train_data, test_data);

    for (auto& [images, labels] : train_batches) {
      auto window = accelerator.accumulate(model);  // RAII: one micro-batch of an accumulation window
      auto loss = torch::nn::functional::cross_entropy(model(images), labels);
      accelerator.backward(loss);  // averages the gradients over the ranks
      accelerator.clip_grad_norm_(model, 1.0);
      optimizer.step();
      scheduler.step();
      optimizer.zero_grad();
    }

    const torch::NoGradGuard no_grad;
    std::int64_t correct = 0;
    for (auto& [images, labels] : test_batches)
      correct += accelerator.gather_for_metrics(model(images).argmax(1).eq(labels)).sum().item<std::int64_t>();
    accelerator.print("test accuracy ", 100.0 * static_cast<double>(correct) / 10000, " %");
  });
}
