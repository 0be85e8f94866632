// DCGAN on MNIST (Radford et al., 2015): two networks and two optimizers that train each other, on any number of ranks.
//
//     dcgan [STEPS] [RANKS] [IMAGES]
//
// What differs from the same program in plain LibTorch: `launch` around it, `prepare`, and `accelerator.backward`.
#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include <tandem/tandem.h>
#include <torch/torch.h>

namespace {

constexpr int kNoise = 32;  // numbers that an image is made from
constexpr int kBatch = 64;  // images of all ranks together

torch::nn::Sequential make_generator() {
  using namespace torch::nn;
  return Sequential(ConvTranspose2d(ConvTranspose2dOptions(kNoise, 64, 7).bias(false)), BatchNorm2d(64),
                    ReLU(),  // 7 x 7
                    ConvTranspose2d(ConvTranspose2dOptions(64, 32, 4).stride(2).padding(1).bias(false)),
                    BatchNorm2d(32),
                    ReLU(),                                                                           // 14 x 14
                    ConvTranspose2d(ConvTranspose2dOptions(32, 1, 4).stride(2).padding(1)), Tanh());  // 28 x 28
}

torch::nn::Sequential make_critic() {
  using namespace torch::nn;
  const auto leaky = LeakyReLUOptions().negative_slope(0.2);
  return Sequential(Conv2d(Conv2dOptions(1, 32, 4).stride(2).padding(1)), LeakyReLU(leaky),
                    Conv2d(Conv2dOptions(32, 64, 4).stride(2).padding(1).bias(false)), BatchNorm2d(64),
                    LeakyReLU(leaky), Conv2d(Conv2dOptions(64, 1, 7)), Flatten());
}

torch::Tensor loss_of(const torch::Tensor& verdicts, double wanted) {
  return torch::binary_cross_entropy_with_logits(verdicts, torch::full_like(verdicts, wanted));
}

// The largest difference of weights and buffers between ranks.
double difference(tandem::Accelerator& accelerator, const std::vector<torch::Tensor>& tensors) {
  double largest = 0;
  for (const auto& tensor : tensors) {
    const auto all = accelerator.gather(tensor.detach().to(torch::kDouble).reshape({1, -1}));
    largest = std::max(largest, (all - all[0]).abs().max().item<double>());
  }
  return largest;
}

}  // namespace

int main(int argc, char** argv) {
  const int steps = argc > 1 ? std::atoi(argv[1]) : 400;
  const int ranks = argc > 2 ? std::atoi(argv[2]) : 2;
  const int images = argc > 3 ? std::atoi(argv[3]) : 60000;
  using tandem::data::MnistNormalize;
  const auto digits = tandem::data::mnist("data/mnist", {.normalize = MnistNormalize::none, .limit = images});

  tandem::launch({.cpu = ranks, .seed = 1}, [&](tandem::Accelerator& accelerator) {
    auto generator = make_generator(), critic = make_critic();
    const auto adam = torch::optim::AdamOptions(2e-4).betas({0.5, 0.999});
    torch::optim::Adam of_generator(generator->parameters(), adam), of_critic(critic->parameters(), adam);
    tandem::data::DataLoader loader(digits, {.batch_size = kBatch / ranks, .shuffle = true, .drop_last = true});
    auto [gen, disc, gen_optimizer, disc_optimizer, batches] =
        accelerator.prepare(generator, critic, of_generator, of_critic, loader);

    for (int step = 0; step < steps;)
      for (auto& [pixels, labels] : batches) {
        const auto real = pixels * 2 - 1;
        disc_optimizer.zero_grad();
        const auto real_loss = loss_of(disc(real), 1.0);
        accelerator.backward(real_loss);
        // Used by both networks' backward passes. Batch norms' buffers become rank 0's only when no graph needs them.
        const auto fake = gen(torch::randn({real.size(0), kNoise, 1, 1}));
        const auto fake_loss = loss_of(disc(fake.detach()), 0.0);
        accelerator.backward(fake_loss);
        disc_optimizer.step();

        gen_optimizer.zero_grad();
        const auto gen_loss = loss_of(disc(fake), 1.0);
        accelerator.backward(gen_loss);
        gen_optimizer.step();

        step += 1;
        if (step % 20 == 0 || step == steps) {
          // Means over the ranks: each has the loss of its own images.
          const auto losses = accelerator.reduce(torch::stack({(real_loss + fake_loss).detach(), gen_loss.detach()}),
                                                 tandem::comm::ReduceOp::mean);
          accelerator.print("step ", step, ", critic ", losses[0].item<double>(), ", generator ",
                            losses[1].item<double>());
        }
        if (step >= steps) break;
      }

    auto tensors = generator->parameters();
    for (auto* net : {&generator, &critic})
      for (const auto& buffer : (*net)->buffers()) tensors.push_back(buffer);
    const double apart = difference(accelerator, tensors);
    const torch::NoGradGuard no_grad;
    generator->eval();
    const auto made = (generator->forward(torch::randn({64, kNoise, 1, 1})) + 1) / 2;
    accelerator.print("ranks differ by ", apart, ", ink of made images ", made.mean().item<double>());
  });
}
