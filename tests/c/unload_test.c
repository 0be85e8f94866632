/* Libraries that are let go and taken again, as a host's plug-ins are: unload_test LIBTANDEM_SHARED PLUGIN. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "tandem/c.h"

static void check(int holds, const char* what) {
  if (holds) return;
  const char* const error = dlerror();
  fprintf(stderr, "not so: %s (%s)\n", what, error ? error : "no error of the loader");
  exit(1);
}

/* ISO C has no way from an object's pointer to a function's. */
static void* function(void* library, const char* name) {
  void* const found = dlsym(library, name);
  check(found != NULL, name);
  return found;
}

/* So that a library that comes again is not where it was. */
static void occupy_memory(void) {
  for (int i = 0; i < 200; ++i) mmap(NULL, 1 << 16, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void train(const char* tandem, const char* plugin) {
  void* const library = dlopen(tandem, RTLD_NOW | RTLD_LOCAL);
  check(library != NULL, tandem);
  void* const trainings = dlopen(plugin, RTLD_NOW | RTLD_LOCAL);
  check(trainings != NULL, plugin);
  void (*register_trainings)(void);
  void (*config_init)(tandem_config*);
  tandem_code (*session_new)(tandem_on_event, void*, tandem_session**);
  tandem_code (*session_start)(tandem_session*, const char*, const char*, const tandem_config*);
  tandem_code (*session_wait)(tandem_session*);
  tandem_code (*session_free)(tandem_session*);
  *(void**)&register_trainings = function(trainings, "register_trainings");
  *(void**)&config_init = function(library, "tandem_config_init");
  *(void**)&session_new = function(library, "tandem_session_new");
  *(void**)&session_start = function(library, "tandem_session_start");
  *(void**)&session_wait = function(library, "tandem_session_wait");
  *(void**)&session_free = function(library, "tandem_session_free");

  register_trainings();
  tandem_session* session = NULL;
  tandem_config config;
  config_init(&config);
  config.cpu = 2;
  check(session_new(NULL, NULL, &session) == TANDEM_OK, "a session");
  check(session_start(session, "fit", "50", &config) == TANDEM_OK, "starts");
  check(session_wait(session) == TANDEM_OK, "trains");
  check(session_free(session) == TANDEM_OK, "goes");
  check(dlclose(trainings) == 0, "the plug-in is let go");
  check(dlclose(library) == 0, "the library is let go");
  check(dlopen(plugin, RTLD_NOW | RTLD_NOLOAD) == NULL, "the plug-in is gone");
  occupy_memory();
}

int main(int count, char** arguments) {
  check(count == 3, "two libraries are given");
  for (int i = 0; i < 3; ++i) train(arguments[1], arguments[2]);
  /* LibTorch keeps functions of Tandem's, so it stays. */
  check(dlopen(arguments[1], RTLD_NOW | RTLD_NOLOAD) != NULL, "the library stays loaded");
  return 0;
}
