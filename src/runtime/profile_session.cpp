#include "runtime/profile_session.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <utility>

#include <c10/util/Exception.h>
#include <nlohmann/json.hpp>

#include "io/json_text.h"
#include "io/output_file.h"
#include "io/read_file.h"
#include "tandem/core/error.h"

namespace tandem {
namespace {

// LibTorch's profiler is one for the process.
std::atomic<bool> session_exists{false};

nlohmann::json thread_property(int thread, const char* property, const char* key, const nlohmann::json& value) {
  return {{"ph", "M"}, {"name", property}, {"pid", getpid()}, {"tid", thread}, {"args", {{key, value}}}};
}

// LibTorch writes "thread 4711 (rank 0)", sorts by the kernel's numbers, lists threads that are no more, and takes some
// that are for them.
nlohmann::json with_rank_names(nlohmann::json trace, const std::vector<int>& threads) {
  nlohmann::json events = nlohmann::json::array();
  for (std::size_t rank = 0; rank < threads.size(); ++rank) {
    if (threads[rank] == 0) continue;
    events.push_back(thread_property(threads[rank], "thread_name", "name", "rank " + std::to_string(rank)));
    events.push_back(thread_property(threads[rank], "thread_sort_index", "sort_index", rank));
  }
  for (auto& event : trace.at("traceEvents")) {
    const std::string name = event.value("name", "");
    const bool names_thread = name == "thread_name" || name == "thread_sort_index";
    if (!names_thread || event.at("pid") != getpid()) events.push_back(std::move(event));
  }
  trace["traceEvents"] = std::move(events);
  return trace;
}

// The path may be any bytes, and LibTorch writes it into the trace as it is.
nlohmann::json read_trace(const std::string& path) {
  std::ifstream file(path);
  const std::string text(std::istreambuf_iterator<char>(file), {});
  auto trace = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  return trace.is_discarded() ? nlohmann::json::parse(io::as_utf8(text)) : trace;
}

// LibTorch's own trace in the folder of `file`, which goes with the object. LibTorch writes its path into it as it is,
// and gets wrong what has quotes or line breaks: it gets the folder by a number.
struct RawTrace {
  explicit RawTrace(const std::filesystem::path& file)
      : folder(file.parent_path().string()),
        path(folder / (file.filename().string() + ".partial-" + std::to_string(::getpid()))) {}
  ~RawTrace() {
    for (const char* end : {"", ".tmp"}) ::unlink((path + end).c_str());
  }
  RawTrace(const RawTrace&) = delete;
  RawTrace& operator=(const RawTrace&) = delete;
  const io::OpenDirectory folder;
  const std::string path;
};

}  // namespace

ProfileSession::ProfileSession(int ranks, bool gpu) : gpu_(gpu), ranks_(static_cast<std::size_t>(ranks)) {
  if (session_exists.exchange(true))
    throw ConfigError("profile: this process records a profile already; one at a time");
}

ProfileSession::~ProfileSession() { session_exists = false; }

const trace::TorchProfiler* ProfileSession::join(int rank) {
  const std::lock_guard lock(mutex_);
  if (!started_ && !error_) {
    try {
      profiler_.start(gpu_);
      started_ = true;
    } catch (...) {
      error_ = std::current_exception();
    }
  }
  if (!started_) return nullptr;
  ranks_[static_cast<std::size_t>(rank)].thread = gettid();
  return &profiler_;
}

void ProfileSession::leave(int rank, const RankProfile& profile) {
  const std::lock_guard lock(mutex_);
  ranks_[static_cast<std::size_t>(rank)].profile = profile;
  if (++left_ < static_cast<int>(ranks_.size()) || !started_) return;
  try {
    result_ = profiler_.stop();
  } catch (...) {
    error_ = std::current_exception();
  }
}

Profile ProfileSession::finish(const std::string& path, std::int64_t first_step) const {
  try {
    if (error_) std::rethrow_exception(error_);
    // A rank joins at the end of the step before.
    const auto has_steps = [](const Rank& rank) { return rank.profile.steps > 0; };
    if (!result_ || (first_step > 1 && std::none_of(ranks_.begin(), ranks_.end(), has_steps))) return {};
    const RawTrace raw(path);
    result_->save(raw.path);
    std::vector<int> threads;
    Profile profile{.trace = path, .ranks = {}};
    for (const Rank& rank : ranks_) {
      threads.push_back(rank.thread);
      profile.ranks.push_back(rank.profile);
    }
    auto trace = with_rank_names(read_trace(raw.path), threads);
    trace["traceName"] = path;
    const std::string text = io::shown_json(trace) + "\n";
    io::OutputFile(path).write([&](const io::WriteBytes& write) { write(text.data(), text.size()); });
    return profile;
  } catch (const c10::Error& error) {
    throw Error(std::string("LibTorch's profiler failed: ") + error.what_without_backtrace());
  } catch (const nlohmann::json::exception& error) {
    throw Error("'" + path + "': LibTorch's profiler wrote a trace that cannot be read; is the disk full? " +
                error.what());
  }
}

RankProfiler::RankProfiler(std::shared_ptr<ProfileSession> session, int rank, const ProfileOptions& options)
    : session_(std::move(session)), rank_(rank), options_(options) {
  if (options_.first_step == 1) join();
}

void RankProfiler::join() {
  if (const trace::TorchProfiler* profiler = session_->join(rank_)) inside_.emplace(*profiler);
  recorder_.emplace();
  begin_ = Clock::now();
}

void RankProfiler::step_ended() noexcept {
  steps_ += 1;
  if (steps_ == options_.last_step) leave();
  if (steps_ + 1 == options_.first_step && !left_) join();
}

void RankProfiler::leave() noexcept {
  if (std::exchange(left_, true)) return;
  const RankProfile profile = recorder_ ? result() : RankProfile{};
  recorder_.reset();
  inside_.reset();
  session_->leave(rank_, profile);
}

RankProfile RankProfiler::result() const {
  const auto seconds = [this](trace::Kind kind) {
    return std::chrono::duration<double>(recorder_->time(kind)).count();
  };
  RankProfile profile{.steps = steps_ - (options_.first_step - 1),
                      .seconds = std::chrono::duration<double>(Clock::now() - begin_).count(),
                      .data_wait = seconds(trace::Kind::data_wait),
                      .forward = seconds(trace::Kind::forward),
                      .backward = seconds(trace::Kind::backward),
                      .communication = seconds(trace::Kind::communication),
                      .optimizer = seconds(trace::Kind::optimizer)};
  profile.other = profile.seconds - profile.data_wait - profile.forward - profile.backward - profile.communication -
                  profile.optimizer;
  return profile;
}

}  // namespace tandem
