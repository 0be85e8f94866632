/* What a host sets in structs of the C interface, field by field, and what it is called back for:
 * settings_test FOLDER [GPUS], with GPUs where there seem to be some. */
#define _POSIX_C_SOURCE 200809L /* nanosleep */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tandem/c.h"

void register_trainings(void);
void register_settings_trainings(void);

static void check(int holds, const char* what, int line) {
  if (holds) return;
  fprintf(stderr, "line %d: not so: %s (the last error: %s)\n", line, what, tandem_last_error());
  exit(1);
}
#define CHECK(what) check((what) ? 1 : 0, #what, __LINE__)

static const char* folder;
static char path[600];

static const char* file_in_folder(const char* name) {
  snprintf(path, sizeof path, "%s/%s", folder, name);
  return path;
}

static void nap(double seconds) {
  const struct timespec time = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
  nanosleep(&time, NULL);
}

/* Waits for what other threads count. */
static void wait_until(const volatile int* count, int least) {
  for (int i = 0; i < 20000 && *count < least; ++i) nap(0.001);
  CHECK(*count >= least);
}

static tandem_config two_ranks(void) {
  tandem_config config;
  tandem_config_init(&config);
  config.cpu = 2;
  return config;
}

static tandem_session* new_session(void) {
  tandem_session* session = NULL;
  CHECK(tandem_session_new(NULL, NULL, &session) == TANDEM_OK);
  return session;
}

static int state_of(tandem_session* session) {
  tandem_progress progress;
  CHECK(tandem_session_progress(session, &progress) == TANDEM_OK);
  return progress.state;
}

/* ---- each field of tandem_config */

enum kind { POINTER, SIZE, FLAG, CHOICE, COUNT, LARGE, REAL, RESERVED };

struct field {
  const char* name;
  size_t offset, size;
  enum kind kind;
  double other;        /* a value that is not the default */
  const char* written; /* what the training "show" writes of it then */
};

#define FIELD(kind, name, other, written) \
  {#name, offsetof(tandem_config, name), sizeof(((tandem_config*)0)->name), kind, other, written}

static const struct field fields[] = {
    FIELD(SIZE, size, 0, NULL),
    FIELD(COUNT, gpus, 1, NULL), /* see GPUs below */
    FIELD(COUNT, cpu, 3, "ranks=3"),
    FIELD(LARGE, seed, 7, "seed=7"),
    FIELD(COUNT, gradient_accumulation_steps, 4, "gradient_accumulation_steps=4"),
    FIELD(FLAG, sync_with_dataloader, 0, "sync_with_dataloader=0"),
    FIELD(POINTER, checkpoint_directory, 0, NULL),
    FIELD(LARGE, checkpoint_limit, 3, "checkpoint_limit=3"),
    FIELD(POINTER, devices, 0, NULL),
    FIELD(LARGE, device_count, 0, NULL),
    FIELD(CHOICE, mixed_precision, TANDEM_PRECISION_BF16, "computes_in=BFloat16"),
    FIELD(CHOICE, transport, TANDEM_TRANSPORT_PEER_MEMORY, "transport=2"),
    FIELD(CHOICE, tf32, 1, "tf32=11"),
    FIELD(FLAG, expandable_segments, 1, "expandable_segments=1"),
    FIELD(REAL, grad_scaler.init_scale, 128, "init_scale=128"),
    FIELD(REAL, grad_scaler.growth_factor, 3, "growth_factor=3"),
    FIELD(REAL, grad_scaler.backoff_factor, 0.25, "backoff_factor=0.25"),
    FIELD(LARGE, grad_scaler.growth_interval, 10, "growth_interval=10"),
    FIELD(COUNT, threads_per_rank, 3, "threads_per_rank=33"),
    FIELD(FLAG, pin_threads, 1, "pin_threads=1"),
    FIELD(FLAG, keep_tensor_memory, 0, "keep_tensor_memory=0"),
    FIELD(FLAG, device_placement, 0, "device_placement=0"),
    FIELD(FLAG, fused_optimizers, 0, "fused_optimizers=0"),
    FIELD(CHOICE, sharding, TANDEM_SHARDING_OPTIMIZER, "sharding=1"),
    FIELD(COUNT, scheduler_steps_per_update, 2, "scheduler_steps_per_update=2"),
    FIELD(COUNT, logical_ranks, 4, "logical_ranks=4"),
    FIELD(LARGE, gradient_reducer.bucket_bytes, 1000, "\nbucket_bytes=1000"),
    FIELD(LARGE, gradient_reducer.first_bucket_bytes, 100, "first_bucket_bytes=100"),
    FIELD(FLAG, gradient_reducer.gradient_as_bucket_view, 0, "gradient_as_bucket_view=0"),
    FIELD(FLAG, gradient_reducer.share_gradients, 0, "share_gradients=0"),
    FIELD(FLAG, gradient_reducer.broadcast_buffers, 0, "broadcast_buffers=0"),
    FIELD(FLAG, gradient_reducer.static_graph, 1, "static_graph=1"),
    FIELD(FLAG, gradient_reducer.check_finite, 1, "check_finite=1"),
    FIELD(RESERVED, gradient_reducer.reserved, 0, NULL),
    FIELD(FLAG, data_loader.split_batches, 1, "split_batches=1"),
    FIELD(CHOICE, data_loader.dispatch_batches, 1, "dispatch_batches=1"),
    FIELD(FLAG, data_loader.even_batches, 0, "even_batches=0"),
    FIELD(FLAG, data_loader.use_seedable_sampler, 1, "use_seedable_sampler=1"),
    FIELD(FLAG, data_loader.non_blocking, 0, "non_blocking=0"),
    FIELD(FLAG, data_loader.has_data_seed, 1, "has_data_seed=1"),
    FIELD(LARGE, data_loader.data_seed, 5, NULL), /* with has_data_seed, below */
    FIELD(CHOICE, data_loader.rng_types, TANDEM_RNG_CPU + TANDEM_RNG_CUDA, "rng_types=12"),
    FIELD(RESERVED, data_loader.reserved, 0, NULL),
    FIELD(LARGE, nvtx_first, 3, "nvtx_first=3"),
    FIELD(LARGE, nvtx_last, 4, "nvtx_last=4"),
    FIELD(REAL, timeout, 2.5, "timeout=2500"),
    FIELD(POINTER, on_warning, 0, NULL),
    FIELD(POINTER, on_warning_user, 0, NULL),
    FIELD(POINTER, cancel, 0, NULL),
};
enum { kFields = sizeof fields / sizeof fields[0] };

static void set(tandem_config* config, const struct field* field, double value) {
  void* const place = (char*)config + field->offset;
  const int32_t number = (int32_t)value;
  const int64_t large = (int64_t)value;
  if (field->kind == REAL)
    memcpy(place, &value, sizeof value);
  else if (field->kind == LARGE)
    memcpy(place, &large, sizeof large);
  else
    memcpy(place, &number, sizeof number);
}

/* What the training "show" writes. */
static const char* shown(const tandem_config* config) {
  static char text[4000] = "\n";
  tandem_session* const session = new_session();
  CHECK(tandem_session_start(session, "show", file_in_folder("shown"), config) == TANDEM_OK);
  CHECK(tandem_session_wait(session) == TANDEM_OK);
  tandem_session_free(session);
  FILE* const file = fopen(path, "r");
  CHECK(file);
  text[1 + fread(text + 1, 1, sizeof text - 2, file)] = '\0';
  fclose(file);
  return text;
}

static void all_fields_are_walked(void) {
  size_t end = 0;
  for (int i = 0; i < kFields; ++i) {
    CHECK(fields[i].offset == end);
    end += fields[i].size;
  }
  CHECK(end == sizeof(tandem_config));
}

static void each_field_has_its_effect(void) {
  tandem_config config = two_ranks();
  static char defaults[4000];
  snprintf(defaults, sizeof defaults, "%s", shown(&config));
  for (int i = 0; i < kFields; ++i) {
    if (!fields[i].written) continue;
    config = two_ranks();
    set(&config, &fields[i], fields[i].other);
    const char* const text = shown(&config);
    if (strstr(defaults, fields[i].written) || !strstr(text, fields[i].written))
      fprintf(stderr, "%s: with the defaults%s\nand set%s\n", fields[i].name, defaults, text);
    CHECK(!strstr(defaults, fields[i].written) && strstr(text, fields[i].written));
  }
  config = two_ranks();
  config.data_loader.has_data_seed = 1;
  config.data_loader.data_seed = 5;
  CHECK(strstr(shown(&config), "\ndata_seed=5"));
  config = two_ranks();
  config.checkpoint_directory = "/some/where";
  CHECK(strstr(shown(&config), "\ncheckpoint_directory=/some/where\n"));
}

/* By tandem_session_start, or by what it started. The text is tandem_last_error. */
static int is_refused(const tandem_config* config) {
  tandem_session* const session = new_session();
  tandem_code code = tandem_session_start(session, "show", file_in_folder("shown"), config);
  if (code == TANDEM_OK) code = tandem_session_wait(session);
  static char text[1000];
  snprintf(text, sizeof text, "%s", tandem_last_error());
  tandem_session_free(session);
  return code == TANDEM_CONFIG_ERROR;
}

static void values_that_are_none_are_refused_by_name(void) {
  for (int i = 0; i < kFields; ++i) {
    const char* const dot = strrchr(fields[i].name, '.');
    const char* const name = dot ? dot + 1 : fields[i].name;
    static const char* const may_be_large[] = {"seed", "bucket_bytes", "first_bucket_bytes", "data_seed"};
    int any = fields[i].kind == POINTER || fields[i].kind == SIZE;
    for (size_t j = 0; j < sizeof may_be_large / sizeof may_be_large[0]; ++j) any |= strcmp(name, may_be_large[j]) == 0;
    if (any) continue;
    tandem_config config = two_ranks();
    if (strcmp(name, "gpus") == 0) config.cpu = -1;
    set(&config, &fields[i], -2);
    if (!is_refused(&config) || !strstr(tandem_last_error(), name)) fprintf(stderr, "%s\n", fields[i].name);
    CHECK(is_refused(&config) && strstr(tandem_last_error(), name));
    if (fields[i].kind != FLAG && fields[i].kind != CHOICE && fields[i].kind != RESERVED) continue;
    config = two_ranks();
    set(&config, &fields[i], 9);
    CHECK(is_refused(&config) && strstr(tandem_last_error(), name));
  }
  tandem_config config = two_ranks();
  config.size = 16;
  CHECK(is_refused(&config) && strstr(tandem_last_error(), "call tandem_config_init first"));
  config = two_ranks();
  config.device_count = 1;
  CHECK(is_refused(&config) && strstr(tandem_last_error(), "devices"));
  const int32_t device = 0;
  config.devices = &device;
  config.device_count = (size_t)1 << 62; /* of 4 bytes each, that would be none */
  CHECK(is_refused(&config) && strstr(tandem_last_error(), "device_count is 4611686018427387904; use 0 to 1024"));
  config.device_count = 1;
  CHECK(is_refused(&config) && strstr(tandem_last_error(), "gpus, devices and cpu exclude each other"));
}

static void values_that_go_too_far_are_refused(void) {
  tandem_config config = two_ranks(); /* OpenMP ends a process that cannot have as many threads */
  config.threads_per_rank = 1025;
  CHECK(is_refused(&config) && strstr(tandem_last_error(), "threads_per_rank 1025 is out of range; use 1 to 1024"));
  config = two_ranks();
  config.nvtx_first = 3;
  config.nvtx_last = 2;
  CHECK(is_refused(&config) && strstr(tandem_last_error(), "nvtx_capture from 3 to 2 is no range"));
}

/* ---- GPUs by their numbers */

static volatile int device_of[8];

static int note_devices(tandem_rank* rank, const char* options, void* user) {
  (void)options;
  (void)user;
  device_of[tandem_rank_index(rank)] = tandem_rank_device(rank);
  return tandem_rank_step(rank) == TANDEM_OK ? 0 : 1;
}

static void ranks_are_on_the_devices_that_are_named(int gpus) {
  const int32_t devices[] = {1, 2, 1};
  tandem_config config;
  tandem_config_init(&config);
  config.devices = devices;
  config.device_count = 3;
  if (gpus == 0) {
    CHECK(is_refused(&config) && strstr(tandem_last_error(), "no GPU is usable"));
    config.device_count = 0;
    config.gpus = 1;
    CHECK(is_refused(&config) && strstr(tandem_last_error(), "no GPU is usable"));
    return;
  }
  tandem_session* const session = new_session();
  CHECK(tandem_session_start(session, "note devices", NULL, &config) == TANDEM_OK);
  CHECK(tandem_session_wait(session) == TANDEM_OK);
  CHECK(device_of[0] == 1 && device_of[1] == 2 && device_of[2] == 1);
  const int32_t far = gpus;
  config.devices = &far;
  config.device_count = 1;
  CHECK(tandem_session_start(session, "note devices", NULL, &config) == TANDEM_OK);
  CHECK(tandem_session_wait(session) == TANDEM_CONFIG_ERROR);
  CHECK(strstr(tandem_last_error(), "device 8 does not exist; this machine has 8 GPUs"));
  config.device_count = 0;
  config.gpus = 2;
  CHECK(strstr(shown(&config), "\nranks=2\n"));
  config = two_ranks();
  CHECK(tandem_session_start(session, "note devices", NULL, &config) == TANDEM_OK);
  CHECK(tandem_session_wait(session) == TANDEM_OK);
  CHECK(device_of[0] == -1 && device_of[1] == -1);
  tandem_session_free(session);
}

/* ---- what works by itself: the time limit, warnings, a request to end */

static int keep_others_waiting(tandem_rank* rank, const char* options, void* user) {
  (void)options;
  (void)user;
  if (tandem_rank_index(rank) == 1) nap(0.5);
  return tandem_rank_step(rank) == TANDEM_OK ? 0 : 1;
}

static void a_wait_that_is_too_long_ends_the_training(void) {
  tandem_config config = two_ranks();
  tandem_session* const session = new_session();
  CHECK(tandem_session_start(session, "keep others waiting", NULL, &config) == TANDEM_OK);
  CHECK(tandem_session_wait(session) == TANDEM_OK);
  config.timeout = 0.05;
  CHECK(tandem_session_start(session, "keep others waiting", NULL, &config) == TANDEM_OK);
  CHECK(tandem_session_wait(session) == TANDEM_RANK_ERROR);
  CHECK(strstr(tandem_last_error(), "a rank waited longer than the time limit of 0.05 s"));
  tandem_session_free(session);
}

static void note_warning(const char* text, void* user) { snprintf(user, 100, "%s", text); }

static void warnings_are_heard(void) {
  char heard[100] = "";
  tandem_config config = two_ranks();
  config.on_warning = note_warning;
  config.on_warning_user = heard;
  shown(&config);
  CHECK(strcmp(heard, "shown") == 0);
}

static void one_request_ends_all_trainings_that_have_it(void) {
  tandem_cancel *cancel = NULL, *other = NULL;
  CHECK(tandem_cancel_new(NULL) == TANDEM_CONFIG_ERROR && tandem_cancel_request(NULL) == TANDEM_CONFIG_ERROR);
  CHECK(tandem_cancel_new(&cancel) == TANDEM_OK && tandem_cancel_new(&other) == TANDEM_OK);
  tandem_session* sessions[3];
  for (int i = 0; i < 3; ++i) {
    tandem_config config = two_ranks();
    config.cancel = i < 2 ? cancel : other;
    sessions[i] = new_session();
    CHECK(tandem_session_start(sessions[i], "fit", NULL, &config) == TANDEM_OK);
  }
  CHECK(tandem_cancel_request(cancel) == TANDEM_OK);
  for (int i = 0; i < 2; ++i) {
    CHECK(tandem_session_wait(sessions[i]) == TANDEM_OK);
    CHECK(state_of(sessions[i]) == TANDEM_CANCELLED_STATE);
  }
  tandem_cancel_free(other); /* is no request */
  CHECK(tandem_session_wait_for(sessions[2], 0.05) == TANDEM_NOT_YET);
  tandem_config config = two_ranks();
  config.cancel = cancel;
  CHECK(tandem_session_start(sessions[0], "fit", NULL, &config) == TANDEM_OK);
  CHECK(tandem_session_wait(sessions[0]) == TANDEM_OK && state_of(sessions[0]) == TANDEM_CANCELLED_STATE);
  for (int i = 0; i < 3; ++i) CHECK(tandem_session_free(sessions[i]) == TANDEM_OK);
  tandem_cancel_free(cancel);
  tandem_cancel_free(NULL);
}

/* ---- what returns at once */

struct answers {
  volatile int count, left_out;
  int code;
  char text[600];
  tandem_snapshot* snapshot;
};

static void note_save(tandem_code code, const char* text, void* user) {
  struct answers* const answers = user;
  answers->code = (int)code;
  answers->left_out += code == TANDEM_OK && text[0] == '\0';
  snprintf(answers->text, sizeof answers->text, "%s", text);
  ++answers->count;
}

static void note_snapshot(tandem_code code, tandem_snapshot* snapshot, const char* text, void* user) {
  struct answers* const answers = user;
  note_save(code, text, user);
  answers->snapshot = snapshot;
}

static int exists(const char* file) {
  FILE* const opened = fopen(file, "r");
  if (opened) fclose(opened);
  return opened != NULL;
}

static void saves_are_answered_and_not_waited_for(void) {
  struct answers answers = {0};
  tandem_session* const session = new_session();
  const tandem_config config = two_ranks();
  CHECK(tandem_session_begin_save(session, NULL, NULL, note_save, &answers) == TANDEM_OK);
  wait_until(&answers.count, 1);
  CHECK(answers.code == TANDEM_ERROR && strstr(answers.text, "no training was started"));

  CHECK(tandem_session_start(session, "fit", NULL, &config) == TANDEM_OK);
  char directory[700];
  snprintf(directory, sizeof directory, "%s", file_in_folder("saved"));
  tandem_save_options options;
  tandem_save_options_init(&options);
  options.max_shard_bytes = 1;
  CHECK(tandem_session_begin_save(session, directory, &options, note_save, &answers) == TANDEM_OK);
  wait_until(&answers.count, 2);
  CHECK(answers.code == TANDEM_OK && strcmp(answers.text, directory) == 0);
  CHECK(exists(file_in_folder("saved/model.safetensors.index.json")));
  CHECK(tandem_session_begin_save(session, "/dev/null/state", NULL, note_save, &answers) == TANDEM_OK);
  wait_until(&answers.count, 3);
  CHECK(answers.code == TANDEM_CHECKPOINT_ERROR && strstr(answers.text, "/dev/null"));

  options.background = 1;
  options.skip_when_busy = 1;
  options.max_shard_bytes = 1000;
  int saves = 3;
  while (answers.left_out == 0 && saves < 2000) {
    for (int i = 0; i < 10; ++i, ++saves)
      CHECK(tandem_session_begin_save(session, directory, &options, note_save, &answers) == TANDEM_OK);
    wait_until(&answers.count, saves);
  }
  CHECK(answers.left_out > 0 && answers.code == TANDEM_OK);
  options.background = 2;
  CHECK(tandem_session_begin_save(session, directory, &options, note_save, &answers) == TANDEM_CONFIG_ERROR);
  options.size = 1;
  CHECK(tandem_session_begin_save(session, directory, &options, note_save, &answers) == TANDEM_CONFIG_ERROR);
  CHECK(strstr(tandem_last_error(), "call tandem_save_options_init first"));
  CHECK(tandem_session_begin_save(session, directory, NULL, NULL, NULL) == TANDEM_OK);
  CHECK(tandem_session_free(session) == TANDEM_OK);
}

static void snapshots_are_given_and_not_waited_for(void) {
  struct answers answers = {0};
  tandem_session* const session = new_session();
  const tandem_config config = two_ranks();
  CHECK(tandem_session_begin_snapshot(session, NULL, NULL) == TANDEM_CONFIG_ERROR);
  CHECK(tandem_session_begin_snapshot(session, note_snapshot, &answers) == TANDEM_OK);
  wait_until(&answers.count, 1);
  CHECK(answers.code == TANDEM_ERROR && !answers.snapshot && strstr(answers.text, "no training was started"));

  CHECK(tandem_session_start(session, "fit", NULL, &config) == TANDEM_OK);
  CHECK(tandem_session_begin_snapshot(session, note_snapshot, &answers) == TANDEM_OK);
  wait_until(&answers.count, 2);
  CHECK(answers.code == TANDEM_OK && answers.text[0] == '\0');
  CHECK(tandem_snapshot_tensors(answers.snapshot, 0) == 2 && tandem_snapshot_epoch(answers.snapshot) == 0);
  CHECK(tandem_snapshot_epoch(NULL) == -1);
  tandem_snapshot_free(answers.snapshot);
  CHECK(tandem_session_cancel(session) == TANDEM_OK && tandem_session_wait(session) == TANDEM_OK);
  CHECK(tandem_session_begin_snapshot(session, note_snapshot, &answers) == TANDEM_OK);
  wait_until(&answers.count, 3);
  CHECK(answers.code == TANDEM_ERROR && !answers.snapshot && answers.text[0] != '\0');
  CHECK(tandem_session_free(session) == TANDEM_OK);
}

/* ---- events */

struct events {
  volatile int steps, epochs, ended;
  int64_t left_out, out_of_order;
};

static void count(const tandem_event* event, void* user) {
  struct events* const events = user;
  events->steps += event->kind == TANDEM_EVENT_STEP;
  events->ended += event->kind == TANDEM_EVENT_ENDED;
  if (event->kind != TANDEM_EVENT_EPOCH) return;
  events->out_of_order += event->progress.epoch != events->epochs;
  events->left_out += event->left_out;
  ++events->epochs;
  if (events->epochs < 5) nap(0.02); /* many more begin meanwhile */
}

static struct events events_of(const char* training, const char* options, double step_interval, int every_epoch) {
  struct events events = {0};
  tandem_session_options session_options;
  tandem_session_options_init(&session_options);
  session_options.on_event = count;
  session_options.user = &events;
  session_options.step_interval = step_interval;
  session_options.every_epoch = every_epoch;
  tandem_session* session = NULL;
  const tandem_config config = two_ranks();
  CHECK(tandem_session_new_with(&session_options, &session) == TANDEM_OK);
  CHECK(tandem_session_start(session, training, options, &config) == TANDEM_OK);
  CHECK(tandem_session_wait(session) == TANDEM_OK);
  wait_until(&events.ended, 1);
  CHECK(tandem_session_free(session) == TANDEM_OK);
  return events;
}

static void every_epoch_has_its_event_for_a_host_that_asks(void) {
  const struct events events = events_of("epochs", "300", 0.016, 1);
  CHECK(events.epochs == 300 && events.out_of_order == 0 && events.left_out == 0);
}

static void steps_are_told_as_often_as_is_asked(void) {
  CHECK(events_of("fit", "50", 1e9, 0).steps == 0);
  CHECK(events_of("fit", "50", 0, 0).steps > 0);
}

static void session_options_that_are_none_are_refused(void) {
  tandem_session* session = NULL;
  tandem_session_options options;
  CHECK(tandem_session_new_with(NULL, &session) == TANDEM_CONFIG_ERROR && !session);
  for (int i = 0; i < 4; ++i) {
    static const char* const names[] = {"tandem_session_options_init", "step_interval", "every_epoch", "reserved"};
    tandem_session_options_init(&options);
    if (i == 0) options.size = 1;
    if (i == 1) options.step_interval = -1;
    if (i == 2) options.every_epoch = 2;
    if (i == 3) options.reserved = 1;
    CHECK(tandem_session_new_with(&options, &session) == TANDEM_CONFIG_ERROR && !session);
    CHECK(strstr(tandem_last_error(), names[i]));
  }
}

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  folder = argv[1];
  register_trainings();
  register_settings_trainings();
  CHECK(tandem_register_training("note devices", note_devices, NULL) == TANDEM_OK);
  CHECK(tandem_register_training("keep others waiting", keep_others_waiting, NULL) == TANDEM_OK);
  ranks_are_on_the_devices_that_are_named(argc > 2 ? atoi(argv[2]) : 0);
  if (argc > 2) return 0;
  all_fields_are_walked();
  each_field_has_its_effect();
  values_that_are_none_are_refused_by_name();
  values_that_go_too_far_are_refused();
  a_wait_that_is_too_long_ends_the_training();
  warnings_are_heard();
  one_request_ends_all_trainings_that_have_it();
  saves_are_answered_and_not_waited_for();
  snapshots_are_given_and_not_waited_for();
  every_epoch_has_its_event_for_a_host_that_asks();
  steps_are_told_as_often_as_is_asked();
  session_options_that_are_none_are_refused();
  return 0;
}
