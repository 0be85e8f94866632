// Stands for NVIDIA's driver. FAKE_VERSION is the CUDA version that it knows, FAKE_INIT what cuInit returns.
#pragma GCC visibility push(default)
extern "C" {
int cuDriverGetVersion(int* version) {
  *version = FAKE_VERSION;
  return 0;
}
int cuInit(unsigned) { return FAKE_INIT; }
int cuDeviceGetCount(int* count) {
  *count = FAKE_DEVICES;
  return FAKE_INIT;
}
}
