/*
 * Stands for the driver's libnvidia-ml.so.1: as much of NVML as gpu/reader.py asks.
 * FAKE_GPUS names a file that is read at each nvmlDeviceGetCount, so that a test can
 * let a device fall off the bus; a line each:
 *   driver VERSION
 *   gpu UUID MINOR MEMORY_MIB NUMA LINKS SLICES ERRORS PID NAME   (LINKS: a letter, alike where NVLink connects)
 *   xid NUMBER UUID
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, TIMEOUT = 10, LOST = 15 };
#define MAX 16

struct gpu {
	char uuid[96], name[96], links[8];
	unsigned minor, index, slices, slice, pid;
	int numa;
	unsigned long long memory_mb, errors;
	struct gpu *whole;
};

static struct gpu gpus[MAX], parts[MAX][8];
static unsigned count;
static unsigned xids[64], heard;
static unsigned nxids;
static char owners[64][96], driver[80];

static void look(void)
{
	const char *path = getenv("FAKE_GPUS");
	char line[512];
	FILE *f = path ? fopen(path, "r") : NULL;
	count = nxids = 0;
	while (f && fgets(line, sizeof line, f)) {
		struct gpu g = {0};
		if (sscanf(line, "driver %79s", driver) == 1)
			continue;
		if (nxids < 64 && sscanf(line, "xid %u %95s", &xids[nxids], owners[nxids]) == 2) {
			nxids++;
			continue;
		}
		if (count < MAX && sscanf(line, "gpu %95s %u %llu %d %7s %u %llu %u %95[^\n]", g.uuid, &g.minor, &g.memory_mb, &g.numa,
					  g.links, &g.slices, &g.errors, &g.pid, g.name) == 9) {
			g.index = count;
			gpus[count] = g;
			for (unsigned i = 0; i < g.slices && i < 8; i++) {
				struct gpu *p = &parts[count][i];
				*p = g;
				p->whole = &gpus[count];
				p->slice = i + 1;
				p->memory_mb = 9856;
				snprintf(p->uuid, sizeof p->uuid, "MIG-%.60s-%u", g.uuid, i);
				snprintf(p->name, sizeof p->name, "%.60s MIG 1g.10gb", g.name);
			}
			count++;
		}
	}
	if (f)
		fclose(f);
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; look(); return count || *driver ? OK : 9; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int error) { return error == 9 ? "Driver Not Loaded" : "Error"; }
int nvmlSystemGetDriverVersion(char *to, unsigned n) { snprintf(to, n, "%s", driver); return OK; }
int nvmlDeviceGetCount_v2(unsigned *to) { look(); *to = count; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **to)
{
	if (i >= count)
		return NOT_FOUND;
	*to = &gpus[i];
	return strcmp(gpus[i].name, "lost") == 0 ? LOST : OK;
}
int nvmlDeviceGetName(struct gpu *g, char *to, unsigned n) { snprintf(to, n, "%s", g->name); return OK; }
int nvmlDeviceGetUUID(struct gpu *g, char *to, unsigned n) { snprintf(to, n, "%s", g->uuid); return OK; }
int nvmlDeviceGetMinorNumber(struct gpu *g, unsigned *to) { *to = g->minor; return OK; }
int nvmlDeviceGetMemoryInfo(struct gpu *g, unsigned long long *to)
{
	to[0] = g->memory_mb << 20;
	to[2] = 3 << 20;
	to[1] = to[0] - to[2];
	return OK;
}
struct pci { char legacy[16]; unsigned domain, bus, device, id, sub; char bus_id[32]; };
int nvmlDeviceGetPciInfo_v3(struct gpu *g, struct pci *to)
{
	memset(to, 0, sizeof *to);
	snprintf(to->bus_id, sizeof to->bus_id, "00000000:%02X:00.0", g->minor + 1);
	return OK;
}
int nvmlDeviceGetNumaNodeId(struct gpu *g, int *to) { *to = g->numa; return g->numa < 0 ? NOT_SUPPORTED : OK; }
int nvmlDeviceGetUtilizationRates(struct gpu *g, unsigned *to) { (void)g; to[0] = 42; to[1] = 7; return OK; }
int nvmlDeviceGetTemperature(struct gpu *g, int sensor, unsigned *to) { (void)sensor; *to = 40 + g->minor; return OK; }
int nvmlDeviceGetPowerUsage(struct gpu *g, unsigned *to) { (void)g; *to = 123456; return OK; }
int nvmlDeviceGetMigMode(struct gpu *g, unsigned *now, unsigned *then) { *now = *then = g->slices > 0; return OK; }
int nvmlDeviceGetMaxMigDeviceCount(struct gpu *g, unsigned *to) { (void)g; *to = 7; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(struct gpu *g, unsigned i, void **to)
{
	*to = &parts[g->index][i];
	return i < g->slices ? OK : NOT_FOUND;
}
int nvmlDeviceGetP2PStatus(struct gpu *a, struct gpu *b, int what, int *to)
{
	(void)what;
	*to = strcmp(a->links, b->links) == 0 && strcmp(a->links, "-") ? 0 : 3;
	return OK;
}
int nvmlDeviceGetTotalEccErrors(struct gpu *g, int kind, int counter, unsigned long long *to)
{
	(void)kind, (void)counter;
	*to = g->errors;
	return OK;
}
struct process { unsigned pid; unsigned long long memory; unsigned gi, ci; };
int nvmlDeviceGetComputeRunningProcesses_v3(struct gpu *g, unsigned *n, struct process *to)
{
	if (!g->pid) {
		*n = 0;
		return OK;
	}
	if (!to || *n < 1) {
		*n = 1;
		return 7; /* insufficient size */
	}
	to[0] = (struct process){.pid = g->pid};
	*n = 1;
	return OK;
}
int nvmlEventSetCreate(void **to) { *to = &heard; return OK; }
int nvmlEventSetFree(void *set) { (void)set; return OK; }
int nvmlDeviceRegisterEvents(struct gpu *g, unsigned long long kinds, void *set) { (void)g, (void)kinds, (void)set; return OK; }
struct event { void *device; unsigned long long kind, data; unsigned gi, ci; };
int nvmlEventSetWait_v2(void *set, struct event *to, unsigned ms)
{
	(void)set, (void)ms;
	if (heard >= nxids)
		return TIMEOUT;
	for (unsigned i = 0; i < count; i++)
		if (strcmp(gpus[i].uuid, owners[heard]) == 0)
			to->device = &gpus[i];
	to->kind = 8;
	to->data = xids[heard++];
	return OK;
}
