/*
 * Finds the process that holds most memory, for PID 1 to end it before the kernel ends one of
 * the sentry's own: the threads of that one would wait for ever.
 */
#include "init.h"
#include <sys/vfs.h>

#define RECENT 16

static pid_t recent[RECENT]; /* killed before, perhaps not yet gone */
static unsigned next_recent;

static ssize_t read_file(pid_t pid, const char *name, char *buf, size_t room)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, name);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, buf, room - 1);
	if (fd >= 0)
		close(fd);
	if (n >= 0)
		buf[n] = 0;
	return n;
}

static uint64_t resident_pages(pid_t pid)
{
	char buf[256];
	unsigned long long size, resident;
	if (read_file(pid, "statm", buf, sizeof buf) < 0 || sscanf(buf, "%llu %llu", &size, &resident) != 2)
		return 0;
	return resident;
}

static int is_recent(pid_t pid)
{
	for (int i = 0; i < RECENT; i++)
		if (recent[i] == pid)
			return 1;
	return 0;
}

/* Bytes that the changes to the root occupy; as statfs tells. */
uint64_t root_used(void)
{
	struct statfs fs;
	if (statfs("/", &fs) < 0 || fs.f_bfree > fs.f_blocks)
		return 0;
	return (fs.f_blocks - fs.f_bfree) * (uint64_t)fs.f_bsize;
}

/* The parent of a process, 0 if there is none. */
pid_t parent_of(pid_t pid)
{
	char buf[512], state, *after;
	int parent;
	if (read_file(pid, "stat", buf, sizeof buf) < 0 || !(after = strrchr(buf, ')')) ||
	    sscanf(after + 1, " %c %d", &state, &parent) != 2)
		return 0;
	return (pid_t)parent;
}

/* Whether we may end it: as PID 1 everything inside is ours, as a plain program (in tests) our descendants are. */
static int is_ours(pid_t pid)
{
	for (int i = 0; getpid() != 1 && pid != getpid(); i++)
		if (i == PARENTS_MAX || !(pid = parent_of(pid)))
			return 0;
	return 1;
}

/* The process that holds most, and at least so many bytes, and was not found before; 0 when there is none. */
pid_t find_largest(uint64_t least, uint64_t *resident)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	pid_t largest = 0;
	*resident = 0;
	while (proc && (entry = readdir(proc))) {
		pid_t pid = atoi(entry->d_name);
		if (pid <= 1 || pid == getpid() || is_recent(pid))
			continue;
		uint64_t bytes = resident_pages(pid) * (uint64_t)sysconf(_SC_PAGESIZE);
		if (bytes >= least && bytes > *resident && is_ours(pid)) {
			largest = pid;
			*resident = bytes;
		}
	}
	if (proc)
		closedir(proc);
	if (largest)
		recent[next_recent++ % RECENT] = largest;
	return largest;
}
