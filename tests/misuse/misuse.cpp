// Lines that must not compile, each with a part of what the compiler has to say about it. check.sh compiles this file
// once, and looks for all of them.
#include <tandem/tandem.h>

#include <torch/nn/modules/linear.h>
#include <torch/optim.h>
#include <torch/serialize.h>

struct NoFields {
  at::Tensor loss;
};
struct Empty {};
struct WithNumber {
  at::Tensor loss;
  double sum;
};
auto batch_fields(WithNumber& value) { return std::tie(value.loss, value.sum); }
struct WithText {
  at::Tensor loss;
  std::string name;
};
auto batch_fields(WithText& value) { return std::tie(value.loss, value.name); }

struct GivesStructImpl : torch::nn::Module {
  NoFields forward(const at::Tensor& x) { return {x}; }
};
TORCH_MODULE(GivesStruct);

using tandem::Accelerator;

// expect: For a struct of your own add `inline auto batch_fields(YourStruct& s) { return std::tie(s.a, s.b); }` beside
// it, with its tensors and numbers
void gather_of_a_struct(Accelerator& a, NoFields value) { a.gather(value); }
void reduce_of_a_struct(Accelerator& a, Empty value) { a.reduce(value); }
void broadcast_of_a_struct(Accelerator& a, std::vector<NoFields> value) { a.broadcast(value); }
void pad_of_a_struct(Accelerator& a, std::pair<at::Tensor, Empty> value) { a.pad_across_ranks(value); }

// expect: there is a text or an enum in this value
void gather_of_a_text(Accelerator& a, WithText value) { a.gather(value); }

// expect: there is neither a tensor nor a number in this type
void reduce_of_nothing(Accelerator& a) { a.reduce(std::tuple<>()); }

// expect: gather of a struct with a plain number
void gather_of_a_number_in_a_struct(Accelerator& a, WithNumber value) { a.gather_for_metrics(value); }

// expect: a prepared model's forward returns a type that may hold tensors
void forward_that_gives_a_struct(Accelerator& a, GivesStruct net) { a.prepare(net)(at::ones({1})); }

// expect: prepare of a temporary optimizer
void temporary_optimizer(Accelerator& a, torch::nn::Linear net) {
  a.prepare(net, torch::optim::AdamW(net->parameters(), 0.1));
}
void moved_optimizer(Accelerator& a, torch::optim::SGD sgd) { a.prepare(std::move(sgd)); }

// expect: prepare of a temporary scheduler
void temporary_scheduler(Accelerator& a, torch::optim::SGD& sgd) { a.prepare(torch::optim::StepLR(sgd, 1, 0.5)); }
void temporary_own_scheduler(Accelerator& a, torch::optim::SGD& sgd) { a.prepare(tandem::optim::StepLR(sgd, 1, 0.5)); }

// expect: prepare of a module that nothing keeps
void module_itself(Accelerator& a, torch::nn::LinearImpl& net) { a.prepare(net); }

// expect: use accelerator.save_model(model, directory) on all ranks
void save_of_a_model(const tandem::PreparedModel<torch::nn::Linear>& model) { torch::save(model, "net.pt"); }

// expect: use accelerator.load_model(model, directory) on all ranks
void load_into_a_model(tandem::PreparedModel<torch::nn::Linear>& model) { torch::load(model, "net.pt"); }

// expect: use accelerator.save_state(directory) on all ranks
void save_of_an_optimizer(const tandem::PreparedOptimizer& optimizer) { torch::save(optimizer, "adamw.pt"); }

// expect: write `for (auto& batch : loader)`, without the `*`
void star_of_a_loader(const tandem::data::PreparedDataLoader<at::Tensor>& loader) {
  for (auto& batch : *loader) batch.zero_();
}

// expect: write `loader.len()`, with a dot
void arrow_of_a_loader(const tandem::data::PreparedDataLoader<at::Tensor>& loader) { loader->len(); }
