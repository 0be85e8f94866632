// The handle. What it asks for is done by SessionRun (session_run.cpp), on the ranks by SessionRank.
#include "tandem/session/session.h"

#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include <ATen/core/grad_mode.h>
#include <c10/util/StringUtil.h>

#include "core/published.h"
#include "runtime/rank_context.h"
#include "session/end_at_exit.h"
#include "session/session_events.h"
#include "session/session_run.h"
#include "tandem/core/error.h"

namespace tandem {

const char* to_string(SessionState state) noexcept {
  switch (state) {
    case SessionState::idle: return "idle";
    case SessionState::starting: return "starting";
    case SessionState::running: return "running";
    case SessionState::pausing: return "pausing";
    case SessionState::paused: return "paused";
    case SessionState::stopping: return "stopping";
    case SessionState::ended: return "ended";
    case SessionState::cancelled: return "cancelled";
    case SessionState::failed: return "failed";
  }
  return "unknown";
}

void ModelSnapshot::load_into(torch::nn::Module& module, std::size_t index) const {
  if (index >= models.size())
    throw ConfigError(c10::str("the snapshot has ", models.size(), " models, and no model ", index));
  const at::NoGradGuard no_grad;
  auto theirs = module.named_parameters();
  for (const auto& item : module.named_buffers()) theirs.insert(item.key(), item.value());
  std::vector<std::pair<at::Tensor, at::Tensor>> copies;  // to, from
  for (const auto& [name, tensor] : models[index]) {
    at::Tensor* const mine = theirs.find(name);
    if (!mine) throw ConfigError("the module has no '" + name + "', which the snapshot has");
    if (mine->sizes() != tensor.sizes())
      throw ConfigError(c10::str("'", name, "' has sizes ", mine->sizes(), " in the module, and ", tensor.sizes(),
                                 " in the snapshot"));
    copies.emplace_back(*mine, tensor);
  }
  for (const auto& item : theirs) {
    const auto is_copied = [&](const auto& copy) { return copy.first.is_same(item.value()); };  // tied weights too
    if (item.value().defined() && std::none_of(copies.begin(), copies.end(), is_copied))
      throw ConfigError("the snapshot has no '" + item.key() + "', which the module has");
  }
  for (auto& [to, from] : copies) to.copy_(from);
}

struct Session::Shared {
  explicit Shared(const SessionOptions& options) : pace{options.step_interval, options.every_epoch}, events(options) {}

  std::shared_ptr<SessionRun> current() const {
    const std::lock_guard lock(mutex);
    return run;
  }

  // Calls the host, unless what it asked for can be called no more.
  void post(const std::shared_ptr<SessionRun>& run, std::function<void()> call) {
    events.post(
        std::move(call), run ? run->on_error() : [](const std::exception_ptr&) {});
  }

  const EventPace pace;
  Published<Progress> progress;
  mutable std::mutex mutex;  // guards the two below
  std::shared_ptr<SessionRun> run;
  std::thread thread;
  SessionEvents events;  // ends first: a callback may use everything above
};

Session::Session(SessionOptions options) : shared_(std::make_shared<Shared>(options)) {}

Session::~Session() {
  cancel();
  std::thread& thread = shared_->thread;
  if (thread.get_id() == std::this_thread::get_id()) {
    shared_->events.close();  // what they would be told is gone
    thread.detach();
  } else if (thread.joinable()) {
    thread.join();
  }
}

void Session::start(LaunchConfig config, std::function<void(Accelerator&)> body) {
  if (current_rank()) throw ConfigError("start was called on a rank of a running session; call it outside of the body");
  const std::lock_guard lock(shared_->mutex);
  if (shared_->run && !shared_->run->has_ended())
    throw Error(std::string("the session cannot start: it is ") + to_string(shared_->run->status().state) +
                "; cancel it or wait for its end first, or use another one");
  if (shared_->thread.joinable()) shared_->thread.join();
  if (shared_->run) shared_->run->retire();
  shared_->run = std::make_shared<SessionRun>(std::move(config), std::move(body), shared_->events, shared_->progress,
                                              shared_->pace);
  end_at_exit(shared_->run);
  try {
    shared_->thread = std::thread([run = shared_->run, shared = shared_] { run->execute(); });
  } catch (const std::system_error& error) {
    shared_->run = nullptr;
    shared_->progress.store({});
    throw Error(std::string("cannot start the session's thread: ") + error.what());
  }
}

void Session::pause(PauseOptions options) {
  if (const auto run = shared_->current()) run->pause(options);
}

void Session::resume() {
  if (const auto run = shared_->current()) run->resume();
}

void Session::request_stop() {
  if (const auto run = shared_->current()) run->request_stop();
}

void Session::cancel() {
  if (const auto run = shared_->current()) run->cancel();
}

namespace {

void save(const std::shared_ptr<SessionRun>& run, const std::string& directory, const SaveStateOptions& options,
          SaveWritten answer) {
  if (run)
    run->save_now(directory, options, std::move(answer));
  else
    answer({}, std::make_exception_ptr(Error("nothing was saved: no training was started")));
}

}  // namespace

std::future<std::string> Session::save_now(const std::string& directory, const SaveStateOptions& options) {
  auto promise = std::make_shared<std::promise<std::string>>();
  save(shared_->current(), directory, options, [promise](const std::string& where, const std::exception_ptr& error) {
    error ? promise->set_exception(error) : promise->set_value(where);
  });
  return promise->get_future();
}

void Session::save_now(const std::string& directory, const SaveStateOptions& options, SaveWritten done) {
  const auto run = shared_->current();
  save(run, directory, options,
       [run = std::weak_ptr(run), done = std::move(done), shared = shared_.get()](const std::string& where,
                                                                                  const std::exception_ptr& error) {
         shared->post(run.lock(), [done, where, error] { done(where, error); });
       });
}

namespace {

void take_snapshot(const std::shared_ptr<SessionRun>& run, SessionRun::TakeSnapshot take) {
  if (run)
    run->snapshot(std::move(take));
  else
    take(nullptr, std::make_exception_ptr(Error("there are no weights: no training was started")));
}

}  // namespace

std::future<ModelSnapshot> Session::snapshot() {
  auto promise = std::make_shared<std::promise<ModelSnapshot>>();
  take_snapshot(shared_->current(),
                [promise](const std::shared_ptr<const ModelSnapshot>& weights, const std::exception_ptr& error) {
                  error ? promise->set_exception(error) : promise->set_value(*weights);
                });
  return promise->get_future();
}

void Session::snapshot(std::function<void(const ModelSnapshot&)> use,
                       std::function<void(const std::exception_ptr&)> otherwise) {
  const auto run = shared_->current();
  take_snapshot(
      run, [run = std::weak_ptr(run), use = std::move(use), otherwise = std::move(otherwise), shared = shared_.get()](
               const std::shared_ptr<const ModelSnapshot>& weights, const std::exception_ptr& error) {
        if (weights)
          shared->post(run.lock(), [use, weights] { use(*weights); });
        else if (otherwise)
          shared->post(run.lock(), [otherwise, error] { otherwise(error); });
      });
}

ModelSnapshot Session::wait_for_snapshot() {
  if (current_rank()) throw ConfigError("evaluate_with was called on a rank, which it would wait for");
  return snapshot().get();
}

void Session::wait() {
  if (current_rank()) throw ConfigError("wait was called on a rank of a running session, which would wait for itself");
  const auto run = shared_->current();
  if (!run) return;
  run->wait_until({});
  run->throw_if_failed();
}

bool Session::wait_for(std::chrono::nanoseconds time) {
  if (current_rank()) throw ConfigError("wait_for was called on a rank of a running session");
  const auto run = shared_->current();
  if (!run) return true;
  // More than a century overflows the clock.
  constexpr std::chrono::nanoseconds kLongest = std::chrono::hours(24 * 365 * 100);
  if (!run->wait_until(std::chrono::steady_clock::now() + std::min(time, kLongest))) return false;
  run->throw_if_failed();
  return true;
}

Session::Status Session::status() const {
  const auto run = shared_->current();
  return run ? run->status() : Status{};
}

Progress Session::progress() const noexcept { return shared_->progress.load(); }

}  // namespace tandem
