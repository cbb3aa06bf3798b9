/* What the init's few files share. */
#ifndef ISOBOX_INIT_H
#define ISOBOX_INIT_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <link.h>
#include <linux/capability.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "wire.h"

#define GROUPS_MAX 64
#define PARENTS_MAX 64 /* how far a process is followed up to the exec that it belongs to */

struct identity {
	uint32_t uid, gid;
	uint32_t ngroups;
	gid_t groups[GROUPS_MAX];
	char name[128];
	char home[1024];
};

/* A request as parsed; the strings point into the request's own memory. */
struct request {
	struct start_head head;
	uint16_t flags;
	uint16_t rows, cols;
	char *user, *cwd;
	char **argv, **env;
};

/* What a started process leaves with us.  A descriptor that does not exist is -1. */
struct spawned {
	pid_t pid;
	int in, out, err; /* our ends; of a terminal, in and out are the master, twice */
	int stage, error; /* stage is 0 when it started */
};

extern int safe[2]; /* a pair of sockets where the channel lies while a child could be asked for it; -1: none */

int identify(struct identity *who, const char *user);
void spawn(const struct request *req, struct spawned *got);
pid_t find_largest(uint64_t least, uint64_t *resident);
pid_t parent_of(pid_t pid);
uint64_t root_used(void);
int refuse_namespaces(void);

#endif
