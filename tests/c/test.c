/* The C interface, from C. */
#include <ATen/dlpack.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tandem/c.h"

void register_trainings(void);

static void check(int holds, const char* what, int line) {
  if (holds) return;
  fprintf(stderr, "line %d: not so: %s (the last error: %s)\n", line, what, tandem_last_error());
  exit(1);
}
#define CHECK(what) check((what) ? 1 : 0, #what, __LINE__)

struct events {
  int started, paused, ended, failed, saved;
  char text[500];
};

static void count(const tandem_event* event, void* user) {
  struct events* events = user;
  events->started += event->kind == TANDEM_EVENT_STARTED;
  events->paused += event->kind == TANDEM_EVENT_PAUSED;
  events->ended += event->kind == TANDEM_EVENT_ENDED;
  events->failed += event->kind == TANDEM_EVENT_FAILED;
  events->saved += event->kind == TANDEM_EVENT_SAVED;
  snprintf(events->text, sizeof events->text, "%s", event->text);
}

static int state_of(tandem_session* session) {
  tandem_progress progress;
  CHECK(tandem_session_progress(session, &progress) == TANDEM_OK);
  return progress.state;
}

static void wait_for_state(tandem_session* session, int state) {
  for (int i = 0; i < 20000 && state_of(session) != state; ++i) tandem_session_wait_for(session, 0.001);
  CHECK(state_of(session) == state);
}

static tandem_config two_ranks(void) {
  tandem_config config;
  tandem_config_init(&config);
  config.cpu = 2;
  return config;
}

/* A training in C: counts to the number in its options, or fails there when `user` says so. */
static int count_steps(tandem_rank* rank, const char* options, void* user) {
  const long steps = strtol(options, NULL, 10);
  tandem_rank_set_total_steps(rank, steps);
  for (long step = 0; step < steps && !tandem_rank_stop_requested(rank); ++step)
    if (tandem_rank_step(rank) != TANDEM_OK) return 1;
  if (!*(int*)user || tandem_rank_index(rank) != 1) return 0;
  tandem_rank_fail(rank, "the disk is on fire");
  return 1;
}

static void errors_say_what_is_wrong(void) {
  tandem_session* session = NULL;
  tandem_config config = two_ranks();
  char room = 'x';
  CHECK(tandem_session_new(NULL, NULL, NULL) == TANDEM_CONFIG_ERROR);
  CHECK(strstr(tandem_last_error(), "where the session goes is NULL"));
  CHECK(tandem_session_new(NULL, NULL, &session) == TANDEM_OK);
  CHECK(tandem_session_start(session, "nothing", NULL, &config) == TANDEM_CONFIG_ERROR);
  CHECK(strstr(tandem_last_error(), "no training is known as 'nothing'; known are: count, fit"));
  config.size = 3;
  CHECK(tandem_session_start(session, "fit", "1", &config) == TANDEM_CONFIG_ERROR);
  CHECK(strstr(tandem_last_error(), "call tandem_config_init first"));
  config = two_ranks();
  config.gpus = 1;
  CHECK(tandem_session_start(session, "fit", "1", &config) == TANDEM_OK);
  CHECK(tandem_session_wait(session) == TANDEM_CONFIG_ERROR);
  tandem_snapshot* snapshot = (tandem_snapshot*)&room;
  CHECK(tandem_session_snapshot(session, &snapshot) == TANDEM_ERROR && snapshot == NULL);
  CHECK(tandem_session_error(session, NULL, 1, NULL) == TANDEM_CONFIG_ERROR);
  CHECK(tandem_session_pause(NULL, 0) == TANDEM_CONFIG_ERROR);
  CHECK(tandem_session_wait_for(session, NAN) == TANDEM_CONFIG_ERROR);
  CHECK(tandem_register_training("x", NULL, NULL) == TANDEM_CONFIG_ERROR);
  tandem_session_free(session);
  tandem_session_free(NULL);
  tandem_snapshot_free(NULL);
}

static void a_function_in_c_trains(int* fails) {
  struct events events = {0};
  tandem_session* session = NULL;
  const tandem_config config = two_ranks();
  CHECK(tandem_session_new(count, &events, &session) == TANDEM_OK);
  CHECK(tandem_session_start(session, "count", "100", &config) == TANDEM_OK);
  CHECK(tandem_session_wait(session) == TANDEM_OK);
  tandem_progress progress;
  CHECK(tandem_session_progress(session, &progress) == TANDEM_OK);
  CHECK(progress.state == TANDEM_ENDED && progress.step == 100 && progress.total_steps == 100);

  CHECK(tandem_session_start(session, "count", "1000000000", &config) == TANDEM_OK);
  CHECK(tandem_session_start(session, "count", "1", &config) == TANDEM_ERROR);
  CHECK(tandem_session_wait_for(session, 0.001) == TANDEM_NOT_YET);
  CHECK(tandem_session_pause(session, 1) == TANDEM_OK);
  wait_for_state(session, TANDEM_PAUSED);
  CHECK(tandem_session_resume(session) == TANDEM_OK);
  CHECK(tandem_session_request_stop(session) == TANDEM_OK);
  CHECK(tandem_session_wait(session) == TANDEM_OK);
  CHECK(state_of(session) == TANDEM_ENDED);

  CHECK(tandem_session_start(session, "count", "1000000000", &config) == TANDEM_OK);
  CHECK(tandem_session_cancel(session) == TANDEM_OK);
  CHECK(tandem_session_wait(session) == TANDEM_OK);
  CHECK(state_of(session) == TANDEM_CANCELLED_STATE);

  *fails = 1;
  CHECK(tandem_session_start(session, "count", "10", &config) == TANDEM_OK);
  CHECK(tandem_session_wait(session) == TANDEM_RANK_ERROR);
  CHECK(strcmp(tandem_last_error(), "rank 1: the disk is on fire") == 0);
  char text[9];
  size_t needed = 0;
  CHECK(tandem_session_error(session, text, sizeof text, &needed) == TANDEM_OK);
  CHECK(strcmp(text, "rank 1: ") == 0 && needed == strlen("rank 1: the disk is on fire") + 1);
  *fails = 0;
  for (int i = 0; i < 20000 && events.failed == 0; ++i) tandem_session_wait_for(session, 0.001);
  tandem_session_free(session);
  CHECK(events.started == 4 && events.paused == 1 && events.ended == 2 && events.failed == 1);
  CHECK(strcmp(events.text, "rank 1: the disk is on fire") == 0);
}

static void weights_come_with_names_and_shapes(const char* directory) {
  struct events events = {0};
  tandem_session* session = NULL;
  const tandem_config config = two_ranks();
  CHECK(tandem_session_new(count, &events, &session) == TANDEM_OK);
  CHECK(tandem_session_start(session, "fit", NULL, &config) == TANDEM_OK);
  tandem_snapshot *early = NULL, *late = NULL;
  CHECK(tandem_session_snapshot(session, &early) == TANDEM_OK);
  char path[500];
  CHECK(tandem_session_save(session, directory, path, sizeof path, NULL) == TANDEM_OK);
  CHECK(strcmp(path, directory) == 0);
  CHECK(tandem_session_save(session, "/dev/null/state", NULL, 0, NULL) == TANDEM_CHECKPOINT_ERROR);
  CHECK(tandem_session_request_stop(session) == TANDEM_OK);
  CHECK(tandem_session_wait(session) == TANDEM_OK);
  CHECK(tandem_session_snapshot(session, &late) == TANDEM_OK);
  tandem_session_free(session);
  CHECK(tandem_snapshot_step(late) >= tandem_snapshot_step(early));
  CHECK(tandem_snapshot_models(late) == 1 && tandem_snapshot_tensors(late, 0) == 2);
  CHECK(tandem_snapshot_tensors(late, 1) == 0);

  tandem_tensor weight, bias;
  CHECK(tandem_snapshot_tensor(late, 0, 0, &weight) == TANDEM_OK);
  CHECK(tandem_snapshot_tensor(late, 0, 1, &bias) == TANDEM_OK);
  CHECK(tandem_snapshot_tensor(late, 0, 2, &bias) == TANDEM_CONFIG_ERROR);
  CHECK(strcmp(weight.name, "weight") == 0 && weight.dims == 2 && weight.shape[0] == 1 && weight.shape[1] == 4);
  CHECK(weight.type == TANDEM_FLOAT32 && weight.bytes == 16);
  const float* numbers = weight.data;
  const float sum = numbers[0] + numbers[1] + numbers[2] + numbers[3] + *(const float*)bias.data;
  CHECK(fabsf(sum - 3) < 1e-3f);

  struct DLManagedTensor* shared = NULL;
  CHECK(tandem_snapshot_dlpack(late, 0, 0, &shared) == TANDEM_OK);
  tandem_snapshot_free(early);
  tandem_snapshot_free(late);
  CHECK(shared->dl_tensor.ndim == 2 && shared->dl_tensor.shape[1] == 4);
  CHECK(shared->dl_tensor.dtype.code == kDLFloat && shared->dl_tensor.dtype.bits == 32);
  CHECK(((const float*)shared->dl_tensor.data)[0] + 1 > 0);
  shared->deleter(shared);
}

int main(int argc, char** argv) {
  static int fails = 0;
  if (argc != 2) return 2;
  CHECK(strcmp(tandem_version(), "0.1.0") == 0 && strcmp(tandem_last_error(), "") == 0);
  register_trainings();
  CHECK(tandem_register_training("count", count_steps, &fails) == TANDEM_OK);
  errors_say_what_is_wrong();
  a_function_in_c_trains(&fails);
  weights_come_with_names_and_shapes(argv[1]);
  return 0;
}
