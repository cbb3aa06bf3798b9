/*
 * Refuses namespaces to everything that runs inside.
 *
 * Whoever may create a user namespace has every capability in it.  The kernel nests
 * them 32 deep, no deeper, so PID 1 descends to the deepest level before it starts
 * anything: there unshare, clone and clone3 fail with EUSERS, for root too, and the
 * other namespaces take CAP_SYS_ADMIN, which nobody has.  A seccomp filter would be
 * weaker and dearer (docs/adr/0024).
 *
 * Each level maps every user and group to itself, so that nothing else changes.  Such
 * a map takes a writer in the level above: a child that shares our memory.
 */
#include "init.h"

#include <sched.h>

#define LEVELS_MAX 64 /* a kernel that nests deeper needs another way */

static int go[2];
static int map_error;
static uint8_t stack[16 << 10] __attribute__((aligned(16)));

static int map_all(const char *path)
{
	static const char all[] = "0 0 4294967295";
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	int done = fd >= 0 && write(fd, all, sizeof all - 1) == sizeof all - 1;
	if (!done)
		map_error = errno;
	if (fd >= 0)
		close(fd);
	return done;
}

static int write_maps(void *unused)
{
	char byte;
	(void)unused;
	if (read(go[0], &byte, 1) != 1)
		return 1;
	return !map_all("/proc/1/uid_map") || !map_all("/proc/1/gid_map");
}

/* Go one level down: 1, or 0 with errno. */
static int descend(void)
{
	int status = 0, error = 0;
	pid_t writer = clone(write_maps, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL);
	if (writer < 0)
		return 0;
	if (unshare(CLONE_NEWUSER) < 0) {
		error = errno;
		kill(writer, SIGKILL);
	} else if (write(go[1], "", 1) != 1) {
		error = errno;
		kill(writer, SIGKILL);
	}
	while (waitpid(writer, &status, 0) < 0 && errno == EINTR)
		;
	if (!error && status)
		error = map_error ? map_error : EPROTO;
	errno = error;
	return !error;
}

/* Only PID 1 may call this, before it has children.  0, or -1: then nothing may be started. */
int refuse_namespaces(void)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct caps[2];
	int levels = 0;
	if (syscall(SYS_capget, &head, caps) < 0 || pipe2(go, O_CLOEXEC) < 0)
		return -1;
	while (levels < LEVELS_MAX && descend())
		levels++;
	int bottom = levels < LEVELS_MAX && errno == EUSERS;
	close(go[0]);
	close(go[1]);
	/* A new namespace gives all capabilities: keep those that we came with. */
	return bottom && syscall(SYS_capset, &head, caps) == 0 ? 0 : -1;
}
