/* A libnvidia-ml.so.1 without a GPU: what it answers is in a text file, which is read again when it changes.
 *
 * The tests build it and load it with LD_LIBRARY_PATH, so that the real binding (pynvml) runs against it.
 * NVML_STUB_SCRIPT names the file, NVML_STUB_CALLS a file to which the name of each called function is appended.
 * What the file named by NVML_STUB_ALLOCATED says is in use on every device besides (cuda_stub.c writes it).
 * With -DOLD_DRIVER the functions that old drivers lack are not exported.
 *
 * The script, one item a line; what follows a `gpu` or `mig` line belongs to it:
 *
 *   driver 580.65.06          version of the driver
 *   cuda 13000                version of CUDA
 *   fail FUNCTION CODE        the function answers with this error, for this device or (above the first gpu) at all
 *   delay FUNCTION MS         the function takes so long
 *   xid NUMBER UUID CODE      an event; each NUMBER (growing) is told once
 *   gpu UUID | mig UUID       a GPU, a slice of the GPU above; `hole` is a MIG index without a slice
 *   name TEXT                 ... capability MAJOR MINOR, memory TOTAL FREE USED RESERVED (bytes), utilization %,
 *                             temperature C, power MW, clocks SM MEM, max_clocks SM MEM (MHz), reasons MASK,
 *                             ecc VOLATILE AGGREGATE, recovery ACTION, mig_mode 0|1
 *   lost CODE                 every function answers so, the one that gives the handle too
 *
 * What a device has no line for is NOT_SUPPORTED. One thread calls at a time, as pool-managerd does.
 * Signatures and codes: nvml.h of CUDA 13, by the way pynvml calls them.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, DRIVER_NOT_LOADED = 9,
       TIMEOUT = 10, GPU_IS_LOST = 15, ARGUMENT_VERSION_MISMATCH = 25 };
enum { DEVICES = 256, RULES = 32, CHILDREN = 8, TEXT = 96 };
enum { MEMORY_V2 = 0x02000028, TEMPERATURE_V1 = 0x100000C, FIELD_RECOVERY_ACTION = 230, XID_EVENT = 8 };

typedef int ret;
typedef unsigned long long u64;
typedef struct { char function[TEXT]; int value; } rule;
typedef struct device {
  char uuid[TEXT], name[TEXT];
  int present, stale, is_mig, lost, has, rules;
  int major, minor, children;
  u64 total, free, used, reserved, reasons, ecc[2];
  unsigned utilization, temperature, power, clocks[3], max_clocks[3], recovery, mig_mode, registered;
  struct device *child[CHILDREN];
  rule fail[RULES];
} device;
enum { NAME = 1, CAPABILITY = 2, MEMORY = 4, UTILIZATION = 8, TEMPERATURE = 16, POWER = 32, CLOCKS = 64,
       MAX_CLOCKS = 128, REASONS = 256, ECC = 512, RECOVERY = 1024, MIG_MODE = 2048 };

static device devices[DEVICES];     /* by UUID, for ever: a handle of a GPU that is gone stays what it was */
static device *order[DEVICES];      /* the GPUs that are there, in the order of the script */
static int device_count, gpu_count, initialized, global_rules, delays;
static rule global_fail[RULES], delay[RULES];
static char driver[TEXT], pending_uuid[TEXT];
static int cuda, pending_xid;
static long told_event, pending_event;
static struct timespec read_mtime;
static ino_t read_inode;

static device *known(const char *uuid) {
  for (int i = 0; i < device_count; i++)
    if (!strcmp(devices[i].uuid, uuid)) return &devices[i];
  if (device_count == DEVICES) abort();
  device *d = &devices[device_count++];
  snprintf(d->uuid, TEXT, "%s", uuid);
  return d;
}

static device *renew(const char *uuid, int is_mig) {
  device *d = known(uuid);
  int stale = d->stale;
  unsigned registered = d->registered;
  memset(d, 0, sizeof *d);
  snprintf(d->uuid, TEXT, "%s", uuid);
  d->present = 1, d->stale = stale, d->is_mig = is_mig, d->registered = registered;
  return d;
}

static void add_rule(rule *rules, int *count, const char *rest) {
  if (*count == RULES) abort();
  if (sscanf(rest, "%95s %d", rules[*count].function, &rules[*count].value) == 2) ++*count;
}

static void take_number(device *d, const char *key, const char *rest) {
#define TAKE(word, bit, want, ...) \
  if (!strcmp(key, word)) { if (sscanf(rest, __VA_ARGS__) == want) d->has |= bit; return; }
  TAKE("capability", CAPABILITY, 2, "%d %d", &d->major, &d->minor)
  TAKE("memory", MEMORY, 4, "%llu %llu %llu %llu", &d->total, &d->free, &d->used, &d->reserved)
  TAKE("utilization", UTILIZATION, 1, "%u", &d->utilization)
  TAKE("temperature", TEMPERATURE, 1, "%u", &d->temperature)
  TAKE("power", POWER, 1, "%u", &d->power)
  TAKE("clocks", CLOCKS, 2, "%u %u", &d->clocks[1], &d->clocks[2])
  TAKE("max_clocks", MAX_CLOCKS, 2, "%u %u", &d->max_clocks[1], &d->max_clocks[2])
  TAKE("reasons", REASONS, 1, "%llu", &d->reasons)
  TAKE("ecc", ECC, 2, "%llu %llu", &d->ecc[0], &d->ecc[1])
  TAKE("recovery", RECOVERY, 1, "%u", &d->recovery)
  TAKE("mig_mode", MIG_MODE, 1, "%u", &d->mig_mode)
  TAKE("lost", 0, 1, "%d", &d->lost)
  fprintf(stderr, "nvml_stub: no such line: %s\n", key);
  abort();
}

static void take_event(const char *rest) {
  long number;
  char uuid[TEXT];
  int xid;
  if (sscanf(rest, "%ld %95s %d", &number, uuid, &xid) != 3 || number <= told_event || pending_event) return;
  pending_event = number, pending_xid = xid;
  snprintf(pending_uuid, TEXT, "%s", uuid);
}

static void take_line(char *line, device **gpu, device **current) {
  char key[TEXT] = "";
  int at = 0;
  line[strcspn(line, "\n")] = 0;
  if (sscanf(line, " %95s %n", key, &at) < 1 || *key == '#') return;
  const char *rest = line + at;
  if (!strcmp(key, "driver")) snprintf(driver, TEXT, "%s", rest);
  else if (!strcmp(key, "cuda")) cuda = atoi(rest);
  else if (!strcmp(key, "delay")) add_rule(delay, &delays, rest);
  else if (!strcmp(key, "xid")) take_event(rest);
  else if (!strcmp(key, "fail") && !*current) add_rule(global_fail, &global_rules, rest);
  else if (!strcmp(key, "gpu")) *current = *gpu = order[gpu_count++] = renew(rest, 0);
  else if (!strcmp(key, "mig") || !strcmp(key, "hole")) {
    if (!*gpu || (*gpu)->children == CHILDREN) abort();
    device *d = *key == 'm' ? renew(rest, 1) : NULL;
    (*gpu)->child[(*gpu)->children++] = d;
    if (d) *current = d;
  } else if (!*current) abort();
  else if (!strcmp(key, "fail")) add_rule((*current)->fail, &(*current)->rules, rest);
  else if (!strcmp(key, "name")) snprintf((*current)->name, TEXT, "%s", rest), (*current)->has |= NAME;
  else take_number(*current, key, rest);
}

static void reread(void) {
  struct stat now;
  const char *path = getenv("NVML_STUB_SCRIPT");
  if (!path || stat(path, &now)) return;
  if (now.st_ino == read_inode && !memcmp(&now.st_mtim, &read_mtime, sizeof read_mtime)) return;
  FILE *file = fopen(path, "r");
  if (!file) return;
  read_inode = now.st_ino, read_mtime = now.st_mtim;
  gpu_count = global_rules = delays = cuda = 0, *driver = 0;
  for (int i = 0; i < device_count; i++) devices[i].present = 0;
  device *gpu = NULL, *current = NULL;
  for (char line[512]; fgets(line, sizeof line, file);) take_line(line, &gpu, &current);
  fclose(file);
  /* A handle of what was taken away is worth nothing until the library is initialised again. */
  for (int i = 0; i < device_count; i++) devices[i].stale |= !devices[i].present;
}

static int find(const rule *rules, int count, const char *function) {
  for (int i = 0; i < count; i++)
    if (!strcmp(rules[i].function, function) || !strcmp(rules[i].function, "*")) return rules[i].value;
  return 0;
}

static void note_call(const char *function) {
  static int file = -2;
  const char *path = getenv("NVML_STUB_CALLS");
  if (file == -2) file = path ? open(path, O_WRONLY | O_CREAT | O_APPEND, 0600) : -1;
  if (file < 0) return;
  char line[TEXT + 1];
  int size = snprintf(line, sizeof line, "%s\n", function);
  if (write(file, line, size) != size) abort();
}

static void pass_ms(int ms) {
  struct timespec time = {ms / 1000, ms % 1000 * 1000000L};
  nanosleep(&time, NULL);
}

static ret begin(const char *function) {
  note_call(function);
  reread();
  int ms = find(delay, delays, function);
  if (ms) pass_ms(ms);
  int code = find(global_fail, global_rules, function);
  return code ? code : initialized ? OK : UNINITIALIZED;
}

static ret begin_device(const char *function, const device *d, int has) {
  ret code = begin(function);
  if (code) return code;
  if (!d) return INVALID_ARGUMENT;
  if (d->lost) return d->lost;
  if (!d->present || d->stale) return d->is_mig ? INVALID_ARGUMENT : GPU_IS_LOST;
  if ((code = find(d->fail, d->rules, function))) return code;
  return !has || d->has & has ? OK : NOT_SUPPORTED;
}
#define BEGIN(d, has) do { ret code = begin_device(__func__, d, has); if (code) return code; } while (0)

ret nvmlInitWithFlags(unsigned flags) {
  (void)flags;
  initialized++;
  ret code = begin(__func__);
  if (code) initialized--;
  for (int i = 0; !code && i < device_count; i++) devices[i].stale = 0;
  return code;
}
ret nvmlShutdown(void) {
  ret code = begin(__func__);
  if (!code) initialized--;
  return code;
}
const char *nvmlErrorString(ret code) {
  static char text[TEXT];
  snprintf(text, TEXT, "stub error %d", code);
  return text;
}
ret nvmlSystemGetDriverVersion(char *text, unsigned size) {
  ret code = begin(__func__);
  if (code) return code;
  return snprintf(text, size, "%s", driver), *driver ? OK : NOT_SUPPORTED;
}
ret nvmlSystemGetCudaDriverVersion_v2(int *version) {
  ret code = begin(__func__);
  if (code) return code;
  return *version = cuda, cuda ? OK : NOT_SUPPORTED;
}
ret nvmlDeviceGetCount_v2(unsigned *count) {
  ret code = begin(__func__);
  if (code) return code;
  return *count = gpu_count, OK;
}
ret nvmlDeviceGetHandleByIndex_v2(unsigned index, device **handle) {
  ret code = begin(__func__);
  if (code) return code;
  if (index >= (unsigned)gpu_count) return INVALID_ARGUMENT;
  if ((code = find(order[index]->fail, order[index]->rules, __func__)) || (code = order[index]->lost)) return code;
  return *handle = order[index], OK;
}
ret nvmlDeviceGetUUID(device *d, char *text, unsigned size) {
  BEGIN(d, 0);
  return snprintf(text, size, "%s", d->uuid), OK;
}
ret nvmlDeviceGetName(device *d, char *text, unsigned size) {
  BEGIN(d, NAME);
  return snprintf(text, size, "%s", d->name), OK;
}
ret nvmlDeviceGetCudaComputeCapability(device *d, int *major, int *minor) {
  BEGIN(d, CAPABILITY);
  return *major = d->major, *minor = d->minor, OK;
}
ret nvmlDeviceGetMigMode(device *d, unsigned *current, unsigned *pending) {
  BEGIN(d, MIG_MODE);
  return *current = *pending = d->mig_mode, OK;
}
ret nvmlDeviceGetMaxMigDeviceCount(device *d, unsigned *count) {
  BEGIN(d, MIG_MODE);
  return *count = d->mig_mode ? d->children : 0, OK;
}
ret nvmlDeviceGetMigDeviceHandleByIndex(device *d, unsigned index, device **handle) {
  BEGIN(d, MIG_MODE);
  if (index >= (unsigned)d->children) return INVALID_ARGUMENT;
  return *handle = d->child[index], *handle ? OK : NOT_FOUND;
}
static u64 allocated(void) {
  u64 bytes = 0;
  const char *path = getenv("NVML_STUB_ALLOCATED");
  FILE *file = path ? fopen(path, "r") : NULL;
  if (!file) return 0;
  if (fscanf(file, "%llu", &bytes) != 1) bytes = 0;
  return fclose(file), bytes;
}
ret nvmlDeviceGetMemoryInfo(device *d, u64 *memory) {
  BEGIN(d, MEMORY);
  u64 more = allocated();
  /* The first version counts what the driver reserves as used. */
  return memory[0] = d->total, memory[1] = d->free - more, memory[2] = d->used + d->reserved + more, OK;
}
#ifndef OLD_DRIVER
typedef struct { unsigned version; u64 total, reserved, free, used; } memory_v2;
ret nvmlDeviceGetMemoryInfo_v2(device *d, memory_v2 *memory) {
  BEGIN(d, MEMORY);
  if (memory->version != MEMORY_V2) return ARGUMENT_VERSION_MISMATCH;
  u64 more = allocated();
  memory->total = d->total, memory->reserved = d->reserved, memory->free = d->free - more, memory->used = d->used + more;
  return OK;
}
typedef struct { unsigned version; int sensor, temperature; } temperature_v1;
ret nvmlDeviceGetTemperatureV(device *d, temperature_v1 *asked) {
  BEGIN(d, TEMPERATURE);
  if (asked->version != TEMPERATURE_V1 || asked->sensor != 0) return ARGUMENT_VERSION_MISMATCH;
  return asked->temperature = (int)d->temperature, OK;
}
ret nvmlDeviceGetCurrentClocksEventReasons(device *d, u64 *mask) {
  BEGIN(d, REASONS);
  return *mask = d->reasons, OK;
}
typedef struct { unsigned id, scope; long long time, latency; unsigned type; ret code; u64 value; } field;
ret nvmlDeviceGetFieldValues(device *d, int count, field *fields) {
  BEGIN(d, 0);
  for (int i = 0; i < count; i++) {
    fields[i].code = fields[i].id == FIELD_RECOVERY_ACTION && d->has & RECOVERY ? OK : NOT_SUPPORTED;
    fields[i].type = 1, fields[i].value = d->recovery;
  }
  return OK;
}
#endif
ret nvmlDeviceGetTemperature(device *d, int sensor, unsigned *temperature) {
  BEGIN(d, TEMPERATURE);
  return *temperature = d->temperature, sensor ? INVALID_ARGUMENT : OK;
}
ret nvmlDeviceGetCurrentClocksThrottleReasons(device *d, u64 *mask) {
  BEGIN(d, REASONS);
  return *mask = d->reasons, OK;
}
ret nvmlDeviceGetUtilizationRates(device *d, unsigned *rates) {
  BEGIN(d, UTILIZATION);
  return rates[0] = d->utilization, rates[1] = 0, OK;
}
ret nvmlDeviceGetPowerUsage(device *d, unsigned *milliwatts) {
  BEGIN(d, POWER);
  return *milliwatts = d->power, OK;
}
ret nvmlDeviceGetClockInfo(device *d, unsigned type, unsigned *mhz) {
  BEGIN(d, CLOCKS);
  return type > 2 ? INVALID_ARGUMENT : (*mhz = d->clocks[type], OK);
}
ret nvmlDeviceGetMaxClockInfo(device *d, unsigned type, unsigned *mhz) {
  BEGIN(d, MAX_CLOCKS);
  return type > 2 ? INVALID_ARGUMENT : (*mhz = d->max_clocks[type], OK);
}
ret nvmlDeviceGetTotalEccErrors(device *d, unsigned type, unsigned counter, u64 *count) {
  BEGIN(d, ECC);
  return type != 1 || counter > 1 ? INVALID_ARGUMENT : (*count = d->ecc[counter], OK);
}
ret nvmlDeviceGetFanSpeed(device *d, unsigned *percent) {
  BEGIN(d, 0);
  return *percent = 0, OK;
}
ret nvmlEventSetCreate(void **set) {
  static int only;
  ret code = begin(__func__);
  return code ? code : (*set = &only, OK);
}
ret nvmlEventSetFree(void *set) {
  (void)set;
  for (int i = 0; i < device_count; i++) devices[i].registered = 0;
  return begin(__func__);
}
ret nvmlDeviceRegisterEvents(device *d, u64 types, void *set) {
  BEGIN(d, 0);
  if (!set || d->is_mig) return INVALID_ARGUMENT;
  return d->registered |= (unsigned)types, OK;
}
typedef struct { device *device; u64 type, data; unsigned instance[2]; } event_data;
ret nvmlEventSetWait_v2(void *set, event_data *event, unsigned timeout_ms) {
  ret code = begin(__func__);
  if (code || !set) return code ? code : INVALID_ARGUMENT;
  for (unsigned passed_ms = 0;; passed_ms += 5) {
    reread();
    device *d = pending_event ? known(pending_uuid) : NULL;
    if (d) told_event = pending_event, pending_event = 0, read_inode = 0;
    if (d && d->registered & XID_EVENT) {
      event->device = d, event->type = XID_EVENT, event->data = pending_xid;
      return OK;
    }
    if (passed_ms >= timeout_ms) return TIMEOUT;
    pass_ms(5);
  }
}
