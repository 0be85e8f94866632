// Trainings as a service: a request a line on standard input, answers and events a line each on standard output, all
// JSON. Any number of trainings run side by side; what goes wrong with one, or with a request, is told and ends nothing
// else.
//
//     {"do": "start", "id": "a", "options": {"steps": 5000, "ranks": 2}}     see TrainingOptions
//     {"do": "pause", "id": "a"}        also resume, stop (ends well), cancel (ends now)
//     {"do": "save", "id": "a", "path": "checkpoints/a"}                     to be continued by the option "resume"
//     {"do": "status"}                  of all
//     {"do": "quit"}                    stops all and ends, as the end of the input does
//
//     {"answer": "ok", "line": 1}   {"answer": "error", "line": 2, "text": "…"}   by the number of the request's line
//     {"event": "step", "id": "a", "step": 12, "total_steps": 5000, "loss": 0.7, …}
#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <future>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <numbers>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <tandem/data/data_loader.h>
#include <tandem/data/tensor_dataset.h>
#include <tandem/session/session.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>
#include <torch/types.h>
#include <nlohmann/json.hpp>

namespace {

using nlohmann::json;

// ---- the training

struct TrainingOptions {
  int ranks = 1;  // on the CPU
  std::int64_t steps = 1000;
  std::int64_t batch_size = 16;  // of a rank
  double lr = 0.1;
  std::uint64_t seed = 42;
  std::string resume;  // a directory that was saved to
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE_WITH_DEFAULT(TrainingOptions, ranks, steps, batch_size, lr, seed, resume)

TrainingOptions read_options(const json& given) {
  const json known = TrainingOptions();
  for (const auto& [name, value] : given.items())
    if (!known.contains(name)) throw std::invalid_argument("there is no option '" + name + "'");
  return given.get<TrainingOptions>();
}

// Points on two spirals, and which of them each is on.
tandem::data::TensorDataset<torch::data::Example<>> spirals() {
  const auto angle = torch::linspace(0.5, 9, 400).repeat_interleave(2);
  const auto side = torch::arange(800) % 2;
  const auto turned = angle + side * std::numbers::pi;
  return {torch::stack({turned.cos(), turned.sin()}, 1) * angle.unsqueeze(1) / 9, side};
}

void train(tandem::Accelerator& accelerator, const TrainingOptions& options) {
  torch::nn::Sequential net(torch::nn::Linear(2, 64), torch::nn::Tanh(), torch::nn::Linear(64, 64), torch::nn::Tanh(),
                            torch::nn::Linear(64, 2));
  torch::optim::SGD sgd(net->parameters(), torch::optim::SGDOptions(options.lr).momentum(0.9));
  tandem::data::DataLoader data(spirals(), {.batch_size = options.batch_size, .shuffle = true});
  auto [model, optimizer, batches] = accelerator.prepare(net, sgd, data);
  // At the job's learning rate, not that of the one that was saved.
  if (!options.resume.empty())
    accelerator.load_state(options.resume, {.optimizer_options = tandem::SettingsOf::program});
  accelerator.set_total_steps(options.steps);

  while (optimizer.updates() < options.steps && !accelerator.stop_requested())
    for (auto& [points, sides] : batches) {
      auto window = accelerator.accumulate(model);
      const auto loss = torch::nn::functional::cross_entropy(model(points), sides);
      if (!std::isfinite(loss.item<double>())) throw std::runtime_error("the loss is not finite; try a smaller lr");
      accelerator.backward(loss);
      optimizer.step();
      optimizer.zero_grad();
      if (optimizer.updates() == options.steps) break;
    }
}

// ---- the service

struct Job {
  bool active = false;                                                    // from its start until its end was told
  std::vector<std::pair<std::string, std::future<std::string>>> saves{};  // where to, and what becomes of it
  std::unique_ptr<tandem::Session> session{};                             // ends first: its events use the rest
};

json describe(const tandem::Progress& progress) {
  return {{"state", to_string(progress.state)},  {"epoch", progress.epoch}, {"step", progress.step},
          {"total_steps", progress.total_steps}, {"loss", progress.loss},   {"seconds_left", progress.seconds_left}};
}

class Service {
 public:
  // Answers a request. Returns false when it was to quit.
  bool handle(const std::string& line, std::int64_t number) {
    const std::lock_guard lock(mutex_);
    json answer = {{"answer", "ok"}};
    try {
      act(json::parse(line), answer);
    } catch (const std::exception& error) {
      answer = {{"answer", "error"}, {"text", error.what()}};
    }
    answer["line"] = number;
    write(answer);
    return !quits_;
  }

  // Stops all trainings, and returns when their ends were told.
  void finish() {
    std::unique_lock lock(mutex_);
    for (auto& [id, job] : jobs_) job.session->request_stop();
    one_has_ended_.wait(lock, [this] {
      return std::none_of(jobs_.begin(), jobs_.end(), [](const auto& item) { return item.second.active; });
    });
  }

 private:
  void act(const json& request, json& answer) {
    const std::string what = request.at("do");
    if (what == "quit") {
      quits_ = true;
    } else if (what == "status") {
      answer["trainings"] = status();
    } else if (what == "start") {
      start(request.at("id"), read_options(request.value("options", json::object())));
    } else {
      Job& job = find(request.at("id"));
      if (what == "pause")
        job.session->pause();
      else if (what == "resume")
        job.session->resume();
      else if (what == "stop")
        job.session->request_stop();
      else if (what == "cancel")
        job.session->cancel();
      else if (what == "save")
        save(job, request.at("path"));
      else
        throw std::invalid_argument("'" + what + "' is no request");
    }
  }

  void start(const std::string& id, const TrainingOptions& options) {
    auto found = jobs_.find(id);
    if (found == jobs_.end()) found = jobs_.emplace(id, Job{.session = make_session(id)}).first;
    Job& job = found->second;
    if (job.active) throw std::invalid_argument("training '" + id + "' has not ended");
    // A core a rank: the trainings share the machine.
    job.session->start({.cpu = options.ranks, .seed = options.seed, .threads_per_rank = 1},
                       [options](tandem::Accelerator& accelerator) { train(accelerator, options); });
    job.active = true;
  }

  std::unique_ptr<tandem::Session> make_session(const std::string& id) {
    return std::make_unique<tandem::Session>(
        tandem::SessionOptions{.on_event = [this, id](const auto& event) { tell(id, event); },
                               .step_interval = std::chrono::milliseconds(200)});
  }

  void save(Job& job, const std::string& path) {
    if (!job.active) throw std::invalid_argument("the training has ended");
    job.saves.emplace_back(path, job.session->save_now(path));
  }

  json status() const {
    json all = json::object();
    for (const auto& [id, job] : jobs_) {
      all[id] = describe(job.session->progress());
      if (const auto error = job.session->status().error; !error.empty()) all[id]["error"] = error;
    }
    return all;
  }

  Job& find(const std::string& id) {
    const auto found = jobs_.find(id);
    if (found == jobs_.end()) throw std::invalid_argument("there is no training '" + id + "'");
    return found->second;
  }

  // On a thread of the session's.
  void tell(const std::string& id, const tandem::SessionEvent& event) {
    using Kind = tandem::SessionEvent::Kind;
    const std::lock_guard lock(mutex_);
    Job& job = jobs_.at(id);
    tell_of_saves(id, job);
    if (event.kind == Kind::saved || event.kind == Kind::save_failed) return;
    json message = describe(event.progress);
    message["event"] = kEventNames[static_cast<int>(event.kind)];
    message["id"] = id;
    if (!event.text.empty()) message["text"] = event.text;
    write(message);
    if (event.kind != Kind::ended && event.kind != Kind::cancelled && event.kind != Kind::failed) return;
    job.active = false;
    one_has_ended_.notify_all();
  }

  // By their futures: a save that the training's end has overtaken has no event.
  void tell_of_saves(const std::string& id, Job& job) {
    std::erase_if(job.saves, [&](auto& save) {
      auto& [path, result] = save;
      if (result.wait_for(std::chrono::seconds(0)) != std::future_status::ready) return false;
      json message = {{"event", "saved"}, {"id", id}, {"path", path}};
      try {
        result.get();
      } catch (const std::exception& error) {
        message["event"] = "save_failed";
        message["text"] = error.what();
      }
      write(message);
      return true;
    });
  }

  // One line, at once. What the client sent may be no UTF-8.
  static void write(const json& message) {
    std::cout << message.dump(-1, ' ', false, json::error_handler_t::replace) << std::endl;
  }

  static constexpr const char* kEventNames[] = {"started", "step",        "epoch", "paused",    "resumed",
                                                "saved",   "save_failed", "ended", "cancelled", "failed"};

  std::mutex mutex_;  // guards all below, and the output
  std::condition_variable one_has_ended_;
  bool quits_ = false;
  std::map<std::string, Job> jobs_;
};

}  // namespace

int main() {
  Service service;
  std::string line;
  for (std::int64_t number = 1; std::getline(std::cin, line); ++number)
    if (!service.handle(line, number)) break;
  service.finish();
}
