#include "tandem/c.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

#include <ATen/DLConvertor.h>
#include <c10/util/Exception.h>

#include "c/settings.h"
#include "comm/error_text.h"
#include "runtime/rank_context.h"
#include "tandem/core/error.h"
#include "tandem/runtime/trainings.h"
#include "tandem/session/session.h"
#include "tandem/version.h"

struct tandem_rank {
  tandem::Accelerator& accelerator;
  std::string failure;
};

struct tandem_session {
  explicit tandem_session(tandem::SessionOptions options) : session(std::move(options)) {}
  tandem::Session session;
};

struct tandem_snapshot {
  explicit tandem_snapshot(const tandem::ModelSnapshot& weights) : snapshot(weights) {
    for (auto& model : snapshot.models)
      for (auto& [name, tensor] : model) tensor = tensor.contiguous();
  }
  tandem::ModelSnapshot snapshot;
};

namespace {

using tandem::ConfigError;
using namespace tandem::c_interface;

thread_local std::string last_error;

tandem_code failed(tandem_code code, const char* text) noexcept {
  try {
    last_error = text;
  } catch (...) {
    last_error.clear();  // for lack of memory
  }
  return code;
}

tandem_code failed_otherwise(const std::exception_ptr& error) noexcept {
  try {
    return failed(TANDEM_ERROR, tandem::text_of(error).c_str());
  } catch (...) {
    return failed(TANDEM_ERROR, "");
  }
}

tandem_code code_of_current_exception() noexcept {
  try {
    throw;
  } catch (const tandem::RankError& error) {
    return failed(TANDEM_RANK_ERROR, error.what());
  } catch (const ConfigError& error) {
    return failed(TANDEM_CONFIG_ERROR, error.what());
  } catch (const tandem::DataError& error) {
    return failed(TANDEM_DATA_ERROR, error.what());
  } catch (const tandem::CollectiveError& error) {
    return failed(TANDEM_COLLECTIVE_ERROR, error.what());
  } catch (const tandem::CheckpointError& error) {
    return failed(TANDEM_CHECKPOINT_ERROR, error.what());
  } catch (const tandem::Cancelled& error) {
    return failed(TANDEM_CANCELLED, error.what());
  } catch (...) {
    return failed_otherwise(std::current_exception());
  }
}

// Runs `work`, which returns nothing or a code.
template <class Work>
tandem_code guarded(const Work& work) noexcept {
  try {
    if constexpr (std::is_void_v<decltype(work())>) {
      work();
      return TANDEM_OK;
    } else {
      return work();
    }
  } catch (...) {
    return code_of_current_exception();
  }
}

// Where a handle goes: NULL until there is one.
template <class T>
T*& place_of(T** handle, const char* what) {
  if (!handle) throw ConfigError(std::string("where the ") + what + " goes is NULL");
  *handle = nullptr;
  return *handle;
}

void check_room(const char* text, std::size_t capacity) {
  if (!text && capacity > 0) throw ConfigError("where the text goes is NULL, with a capacity above 0");
}

void copy_text(const std::string& from, char* to, std::size_t capacity, std::size_t* needed) {
  check_room(to, capacity);
  if (needed) *needed = from.size() + 1;
  if (capacity == 0) return;
  const std::size_t bytes = std::min(from.size(), capacity - 1);
  std::memcpy(to, from.data(), bytes);
  to[bytes] = '\0';
}

// Makes `error` the thread's last, and says which it is.
tandem_code failed_with(const std::exception_ptr& error) noexcept {
  try {
    std::rethrow_exception(error);
  } catch (...) {
    return code_of_current_exception();
  }
}

tandem_type type_of(at::ScalarType type) {
  switch (type) {
    case at::kFloat: return TANDEM_FLOAT32;
    case at::kDouble: return TANDEM_FLOAT64;
    case at::kHalf: return TANDEM_FLOAT16;
    case at::kBFloat16: return TANDEM_BFLOAT16;
    case at::kLong: return TANDEM_INT64;
    case at::kInt: return TANDEM_INT32;
    case at::kByte: return TANDEM_UINT8;
    case at::kBool: return TANDEM_BOOL;
    default: return TANDEM_OTHER;
  }
}

const std::pair<std::string, at::Tensor>& tensor_of(const tandem_snapshot* snapshot, std::size_t model,
                                                    std::size_t index) {
  const auto& models = given(snapshot, "the snapshot").snapshot.models;
  if (model >= models.size()) throw ConfigError("the snapshot has no model " + std::to_string(model));
  if (index >= models[model].size())
    throw ConfigError("model " + std::to_string(model) + " has no tensor " + std::to_string(index));
  return models[model][index];
}

}  // namespace

const char* tandem_last_error(void) { return last_error.c_str(); }

const char* tandem_version(void) { return TANDEM_VERSION; }

// ---- trainings

tandem_code tandem_register_training(const char* name, tandem_training training, void* user) {
  return guarded([&] {
    if (!training) throw ConfigError("the training's function is NULL");
    tandem::register_training(
        text_or_empty(name), [training, user](tandem::Accelerator& accelerator, const std::string& options) {
          tandem_rank rank{accelerator, {}};
          const int result = training(&rank, options.c_str(), user);
          if (accelerator.cancelled()) throw tandem::Cancelled("the training function has returned");
          if (result == 0) return;
          throw tandem::Error(rank.failure.empty() ? "the training function returned " + std::to_string(result)
                                                   : rank.failure);
        });
  });
}

int32_t tandem_rank_index(const tandem_rank* rank) { return rank ? rank->accelerator.rank() : -1; }

int32_t tandem_rank_world_size(const tandem_rank* rank) { return rank ? rank->accelerator.world_size() : -1; }

int32_t tandem_rank_device(const tandem_rank* rank) {
  return rank && !rank->accelerator.device().is_cpu() ? rank->accelerator.device().index() : -1;
}

tandem_code tandem_rank_step(tandem_rank* rank) {
  return guarded([&] {
    tandem::Accelerator& accelerator = given(rank, "the rank").accelerator;
    accelerator.wait_for_everyone();
    const auto window = accelerator.accumulate_and_close();
  });
}

int tandem_rank_stop_requested(const tandem_rank* rank) { return rank && rank->accelerator.stop_requested(); }

void tandem_rank_set_total_steps(tandem_rank* rank, int64_t steps) {
  if (rank) rank->accelerator.set_total_steps(steps);
}

void tandem_rank_fail(tandem_rank* rank, const char* why) {
  guarded([&] { given(rank, "the rank").failure = text_or_empty(why); });
}

// ---- sessions

void tandem_config_init(tandem_config* config) {
  if (config) *config = to_c(tandem::LaunchConfig());
}

tandem_code tandem_cancel_new(tandem_cancel** cancel) {
  return guarded([&] {
    tandem_cancel*& made = place_of(cancel, "request to end");
    made = new tandem_cancel;
  });
}

tandem_code tandem_cancel_request(tandem_cancel* cancel) {
  return guarded([&] { given(cancel, "the request to end").source.request_stop(); });
}

void tandem_cancel_free(tandem_cancel* cancel) { delete cancel; }

void tandem_session_options_init(tandem_session_options* options) {
  if (options) *options = to_c(tandem::SessionOptions());
}

tandem_code tandem_session_new(tandem_on_event on_event, void* user, tandem_session** session) {
  tandem_session_options options;
  tandem_session_options_init(&options);
  options.on_event = on_event;
  options.user = user;
  return tandem_session_new_with(&options, session);
}

tandem_code tandem_session_new_with(const tandem_session_options* options, tandem_session** session) {
  return guarded([&] {
    tandem_session*& made = place_of(session, "session");
    made = new tandem_session(to_session_options(given(options, "the options")));
  });
}

tandem_code tandem_session_free(tandem_session* session) {
  return guarded([&] {
    if (session && tandem::current_rank()) throw ConfigError("a rank cannot free its session, which waits for it");
    delete session;
  });
}

tandem_code tandem_session_start(tandem_session* session, const char* training, const char* options,
                                 const tandem_config* config) {
  return guarded([&] {
    auto body = tandem::find_training(text_or_empty(training));
    given(session, "the session")
        .session.start(to_launch_config(given(config, "the configuration")),
                       [body = std::move(body), text = text_or_empty(options)](tandem::Accelerator& accelerator) {
                         body(accelerator, text);
                       });
  });
}

tandem_code tandem_session_pause(tandem_session* session, int release_memory) {
  return guarded([&] { given(session, "the session").session.pause({.release_memory = release_memory != 0}); });
}

tandem_code tandem_session_resume(tandem_session* session) {
  return guarded([&] { given(session, "the session").session.resume(); });
}

tandem_code tandem_session_request_stop(tandem_session* session) {
  return guarded([&] { given(session, "the session").session.request_stop(); });
}

tandem_code tandem_session_cancel(tandem_session* session) {
  return guarded([&] { given(session, "the session").session.cancel(); });
}

tandem_code tandem_session_wait(tandem_session* session) {
  return guarded([&] { given(session, "the session").session.wait(); });
}

tandem_code tandem_session_wait_for(tandem_session* session, double seconds) {
  return guarded([&] {
    if (!(seconds >= 0)) throw ConfigError("a wait of " + std::to_string(seconds) + " s; use 0 or more");
    constexpr double kLongest = 1e9;
    const std::chrono::duration<double> time(std::min(seconds, kLongest));
    const bool ended =
        given(session, "the session").session.wait_for(std::chrono::duration_cast<std::chrono::nanoseconds>(time));
    return ended ? TANDEM_OK : TANDEM_NOT_YET;
  });
}

tandem_code tandem_session_progress(const tandem_session* session, tandem_progress* progress) {
  return guarded(
      [&] { given(progress, "where the progress goes") = to_c(given(session, "the session").session.progress()); });
}

tandem_code tandem_session_error(const tandem_session* session, char* text, size_t capacity, size_t* needed) {
  return guarded([&] { copy_text(given(session, "the session").session.status().error, text, capacity, needed); });
}

tandem_code tandem_session_save(tandem_session* session, const char* directory, char* path, size_t capacity,
                                size_t* needed) {
  return guarded([&] {
    if (tandem::current_rank()) throw ConfigError("a rank cannot wait for a save");
    check_room(path, capacity);
    copy_text(given(session, "the session").session.save_now(text_or_empty(directory)).get(), path, capacity, needed);
  });
}

void tandem_save_options_init(tandem_save_options* options) {
  if (options) *options = to_c(tandem::SaveStateOptions());
}

tandem_code tandem_session_begin_save(tandem_session* session, const char* directory,
                                      const tandem_save_options* options, tandem_on_saved on_saved, void* user) {
  return guarded([&] {
    const auto tell = [on_saved, user](const std::string& where, const std::exception_ptr& error) {
      if (!on_saved) return;
      const tandem_code code = error ? failed_with(error) : TANDEM_OK;
      on_saved(code, error ? tandem_last_error() : where.c_str(), user);
    };
    given(session, "the session").session.save_now(text_or_empty(directory), to_save_options(options), tell);
  });
}

// ---- weights

tandem_code tandem_session_snapshot(tandem_session* session, tandem_snapshot** snapshot) {
  return guarded([&] {
    tandem_snapshot*& made = place_of(snapshot, "snapshot");
    made = given(session, "the session").session.evaluate_with([](const tandem::ModelSnapshot& weights) {
      return new tandem_snapshot(weights);
    });
  });
}

tandem_code tandem_session_begin_snapshot(tandem_session* session, tandem_on_snapshot on_snapshot, void* user) {
  return guarded([&] {
    if (!on_snapshot) throw ConfigError("on_snapshot, which would be given the weights, is NULL");
    const auto give = [on_snapshot, user](const tandem::ModelSnapshot& weights) {
      tandem_snapshot* made = nullptr;
      const tandem_code code = guarded([&] { made = new tandem_snapshot(weights); });
      on_snapshot(code, made, made ? "" : tandem_last_error(), user);
    };
    const auto tell = [on_snapshot, user](const std::exception_ptr& error) {
      const tandem_code code = failed_with(error);
      on_snapshot(code, nullptr, tandem_last_error(), user);
    };
    given(session, "the session").session.snapshot(give, tell);
  });
}

void tandem_snapshot_free(tandem_snapshot* snapshot) { delete snapshot; }

int64_t tandem_snapshot_step(const tandem_snapshot* snapshot) { return snapshot ? snapshot->snapshot.step : -1; }

int64_t tandem_snapshot_epoch(const tandem_snapshot* snapshot) { return snapshot ? snapshot->snapshot.epoch : -1; }

size_t tandem_snapshot_models(const tandem_snapshot* snapshot) {
  return snapshot ? snapshot->snapshot.models.size() : 0;
}

size_t tandem_snapshot_tensors(const tandem_snapshot* snapshot, size_t model) {
  return model < tandem_snapshot_models(snapshot) ? snapshot->snapshot.models[model].size() : 0;
}

tandem_code tandem_snapshot_tensor(const tandem_snapshot* snapshot, size_t model, size_t index, tandem_tensor* tensor) {
  return guarded([&] {
    const auto& [name, weights] = tensor_of(snapshot, model, index);
    given(tensor, "where the tensor goes") = {.name = name.c_str(),
                                              .data = weights.const_data_ptr(),
                                              .shape = weights.sizes().data(),
                                              .dims = static_cast<std::int32_t>(weights.dim()),
                                              .type = type_of(weights.scalar_type()),
                                              .bytes = weights.nbytes()};
  });
}

tandem_code tandem_snapshot_dlpack(const tandem_snapshot* snapshot, size_t model, size_t index,
                                   struct DLManagedTensor** tensor) {
  return guarded([&] {
    DLManagedTensor*& made = place_of(tensor, "tensor");
    made = at::toDLPack(tensor_of(snapshot, model, index).second);
  });
}
