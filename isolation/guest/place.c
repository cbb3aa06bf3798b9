/*
 * Opens folders on behalf of the host, who has more rights than whoever may have
 * prepared the way there.
 *
 * A link is followed only where root alone could have put it: in a folder that is
 * root's and that nobody else may write, as are all above it.  Below the first other
 * folder there are no links and no "..", whoever renames what meanwhile: each step is
 * taken from the folder that is open.
 */
#include "tar.h"

#define LINKS_MAX 40

int place_is_roots;

static int roots_alone(int fd)
{
	struct stat st;
	return fstat(fd, &st) == 0 && st.st_uid == 0 && !(st.st_mode & (S_IWGRP | S_IWOTH));
}

/* To go on from or, with reading, to list: the former takes no right to read.  The look comes before the opening,
 * because in gVisor O_DIRECTORY follows a link though O_NOFOLLOW stands beside it. */
int open_folder(int at, const char *name, int reading)
{
	struct stat st;
	int fd = openat(at, name, O_PATH | O_NOFOLLOW | O_CLOEXEC), below = -1, error;
	if (fd < 0)
		return -1;
	if (fstat(fd, &st) < 0)
		error = errno;
	else if (!S_ISDIR(st.st_mode))
		error = S_ISLNK(st.st_mode) ? ELOOP : ENOTDIR;
	else if (!reading)
		return fd;
	else
		below = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), error = errno;
	close(fd);
	errno = error;
	return below;
}

static int step(int at, const char *name, int create)
{
	int below = open_folder(at, name, 1);
	if (below < 0 && errno == ENOENT && create && (mkdirat(at, name, 0755) == 0 || errno == EEXIST))
		below = open_folder(at, name, 1);
	return below;
}

/* The folder of that absolute name; with create it and those above it are made.  -1 with errno:
 * ELOOP for a link that is not root's.  place_is_roots tells whether root alone may change its names. */
int open_place(const char *path, int create)
{
	char rest[PATH_MAX], next[PATH_MAX], target[PATH_MAX], name[NAME_MAX + 1], *at = rest;
	int links = 0, fd = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC), below, error;
	if (fd < 0)
		return -1;
	if (snprintf(rest, sizeof rest, "%s", path) >= (int)sizeof rest) {
		errno = ENAMETOOLONG;
		goto failed;
	}
	place_is_roots = roots_alone(fd);
	for (;;) {
		at += strspn(at, "/");
		size_t n = strcspn(at, "/");
		if (!n)
			return fd;
		if (n > NAME_MAX) {
			errno = ENAMETOOLONG;
			goto failed;
		}
		memcpy(name, at, n);
		name[n] = 0;
		at += n;
		if (strcmp(name, "..") == 0 && !place_is_roots) {
			errno = ELOOP;
			goto failed;
		}
		if ((below = step(fd, name, create)) >= 0) {
			close(fd);
			fd = below;
			place_is_roots = place_is_roots && roots_alone(fd);
			continue;
		}
		error = errno;
		ssize_t length = readlinkat(fd, name, target, sizeof target - 1);
		if (length < 0) {
			errno = error;
			goto failed;
		}
		target[length] = 0;
		if (!place_is_roots || ++links > LINKS_MAX) {
			errno = ELOOP;
			goto failed;
		}
		if (snprintf(next, sizeof next, "%s/%s", target, at) >= (int)sizeof next) {
			errno = ENAMETOOLONG;
			goto failed;
		}
		strcpy(at = rest, next);
		if (*rest == '/') {
			close(fd);
			if ((fd = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0)
				return -1;
			place_is_roots = roots_alone(fd);
		}
	}
failed:
	error = errno;
	close(fd);
	errno = error;
	return -1;
}
