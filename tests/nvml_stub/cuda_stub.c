/* A libcuda.so.1 without a GPU: what is allocated is written where the stub of NVML finds it (NVML_STUB_ALLOCATED). */
#include <stdio.h>
#include <stdlib.h>

static unsigned long long total;

static int tell(void) {
  FILE *file = fopen(getenv("NVML_STUB_ALLOCATED"), "w");
  if (!file) return 1;
  fprintf(file, "%llu\n", total);
  return fclose(file) ? 1 : 0;
}

int cuInit(unsigned flags) { return (int)flags; }
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { return *context = &total, device; }
int cuCtxSetCurrent(void *context) { return context ? 0 : 1; }
int cuMemAlloc_v2(unsigned long long *address, size_t size) { return total += size, *address = total, tell(); }
int cuMemFree_v2(unsigned long long address) { return total = 0, address ? tell() : 1; }
