/*
 * Stands for libcuda.so.1, as far as gpu/scrub.py uses it: 600 MiB of memory, of which
 * what was overwritten is written to FAKE_CUDA_LOG. FAKE_CUDA_FAILS names a call that fails.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB (1ull << 20)
static unsigned long long free_bytes = 600 * MIB, overwritten;

static int result(const char *name)
{
	const char *fails = getenv("FAKE_CUDA_FAILS");
	return fails && strcmp(fails, name) == 0 ? 999 : 0;
}

int cuInit(unsigned flags) { (void)flags; return result("cuInit"); }
int cuDeviceGet(int *to, int n) { *to = n; return result("cuDeviceGet"); }
int cuCtxCreate_v2(void **to, unsigned flags, int device) { (void)flags, (void)device; *to = &free_bytes; return 0; }
int cuMemGetInfo_v2(size_t *left, size_t *total) { *left = free_bytes; *total = 600 * MIB; return 0; }
int cuMemAlloc_v2(unsigned long long *to, size_t n)
{
	if (n > free_bytes)
		return 2;
	free_bytes -= n;
	*to = 1;
	return result("cuMemAlloc_v2") ? 2 : 0;
}
int cuMemsetD8_v2(unsigned long long at, unsigned char value, size_t n)
{
	(void)at, (void)value;
	overwritten += n;
	return result("cuMemsetD8_v2");
}
int cuCtxSynchronize(void) { return 0; }
int cuCtxDestroy_v2(void *context)
{
	const char *path = getenv("FAKE_CUDA_LOG"), *which = getenv("CUDA_VISIBLE_DEVICES");
	FILE *log = path ? fopen(path, "a") : NULL;
	(void)context;
	if (log) {
		fprintf(log, "%s %llu\n", which, overwritten / MIB);
		fclose(log);
	}
	return 0;
}
