/*
 * File operations, in a process of the sandbox's user: what may be touched is
 * decided by the guest's own kernel and permissions, never by the host.
 *
 * argv: isobox-files OPERATION PATH [ARGUMENT].  Contents travel over stdin and
 * stdout; entries and errors are NUL-terminated fields (names are any bytes),
 * entries of `list` and `page` on stdout, of all others on stderr:
 *   type mode uid gid size mtime_ns name target      |      error errno detail
 */
#include "tar.h"
#include <signal.h>

static char buffer[1 << 18];
static int no_links; /* see main */
static char named[PATH_MAX];

static int failed(int error, const char *detail)
{
	if (no_links && strcmp(detail, ".") == 0)
		detail = named;
	fprintf(stderr, "error%c%d%c%s%c", 0, error, 0, detail, 0);
	return 1;
}

void die(const char *what)
{
	exit(failed(errno, what));
}

static void entry_at(FILE *to, int at, const char *path, const char *name, const struct stat *st)
{
	char target[PATH_MAX] = "";
	const char *type = S_ISREG(st->st_mode) ? "file" : S_ISDIR(st->st_mode) ? "dir" : S_ISLNK(st->st_mode) ? "symlink" : "other";
	if (S_ISLNK(st->st_mode) && readlinkat(at, path, target, sizeof target - 1) < 0)
		*target = 0;
	fprintf(to, "%s%c%o%c%u%c%u%c%lld%c%lld%c%s%c%s%c", type, 0, st->st_mode & 07777, 0, st->st_uid, 0, st->st_gid, 0,
		(long long)st->st_size, 0, st->st_mtim.tv_sec * 1000000000LL + st->st_mtim.tv_nsec, 0, name, 0, target, 0);
}

static void entry(FILE *to, const char *path, const char *name, const struct stat *st)
{
	entry_at(to, AT_FDCWD, path, name, st);
}

static int stat_file(char *path, const char *argument)
{
	struct stat st;
	(void)argument;
	if (lstat(path, &st) < 0)
		return failed(errno, path);
	entry(stderr, path, path, &st);
	return 0;
}

/* What an open folder holds, which it takes over; below is its name, with a slash, or "". */
static void list(int fd, const char *below, int depth)
{
	char name[PATH_MAX];
	struct stat st;
	struct dirent *d;
	DIR *dir = fdopendir(fd);
	if (!dir) {
		close(fd);
		return;
	}
	while ((d = readdir(dir))) {
		if (strcmp(d->d_name, ".") == 0 || strcmp(d->d_name, "..") == 0)
			continue;
		if (snprintf(name, sizeof name, "%s%s", below, d->d_name) >= (int)sizeof name - 1 ||
		    fstatat(fd, d->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
			continue;
		entry_at(stdout, fd, d->d_name, name, &st);
		if (!S_ISDIR(st.st_mode) || depth < 2)
			continue;
		int folder = open_folder(fd, d->d_name, 1);
		if (folder < 0) /* one that may not be read is listed, but not entered */
			continue;
		strcat(name, "/");
		list(folder, name, depth - 1);
	}
	closedir(dir);
}

static int list_files(char *path, const char *depth)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return failed(errno, path);
	list(fd, "", atoi(depth));
	return 0;
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* argument: LIMIT:AFTER.  The names of one folder in byte order, those behind AFTER, at most LIMIT of them. */
static int page(char *root, const char *argument)
{
	char path[PATH_MAX], **names = NULL, *after = strchr(argument, ':');
	size_t count = 0, room = 0;
	struct stat st;
	struct dirent *d;
	long limit = atol(argument);
	DIR *dir = opendir(root);
	if (!dir)
		return failed(errno, root);
	while ((d = readdir(dir))) {
		if (strcmp(d->d_name, ".") == 0 || strcmp(d->d_name, "..") == 0 || (after && strcmp(d->d_name, after + 1) <= 0))
			continue;
		if (count == room)
			names = must(realloc(names, (room = room ? room * 2 : 1024) * sizeof *names));
		names[count++] = must(strdup(d->d_name));
	}
	closedir(dir);
	if (count)
		qsort(names, count, sizeof *names, by_name);
	for (size_t i = 0; i < count && limit > 0; i++) {
		if (snprintf(path, sizeof path, "%s/%s", root, names[i]) >= (int)sizeof path || lstat(path, &st) < 0)
			continue;
		entry(stdout, path, names[i], &st);
		limit--;
	}
	return 0;
}

static int copy(int from, int to, long long limit)
{
	while (limit != 0) {
		size_t want = limit < 0 || limit > (long long)sizeof buffer ? sizeof buffer : (size_t)limit;
		ssize_t n = read(from, buffer, want), m;
		if (n <= 0)
			return n < 0 ? -1 : 0;
		for (ssize_t done = 0; done < n; done += m)
			if ((m = write(to, buffer + done, (size_t)(n - done))) < 0)
				return -1;
		limit -= limit < 0 ? 0 : n;
	}
	return 0;
}

/* argument: OFFSET:LENGTH, a negative offset counting from the end, a negative length meaning all. */
static int read_file(char *path, const char *range)
{
	struct stat st;
	long long offset = 0, length = -1;
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC); /* a FIFO must not hold us up */
	if (fd < 0 || fstat(fd, &st) < 0)
		return failed(errno, path);
	if (!S_ISREG(st.st_mode))
		return failed(S_ISDIR(st.st_mode) ? EISDIR : EINVAL, path);
	sscanf(range, "%lld:%lld", &offset, &length);
	if (offset < 0)
		offset = st.st_size + offset < 0 ? 0 : st.st_size + offset;
	entry(stderr, path, path, &st);
	fflush(stderr);
	if (lseek(fd, offset, SEEK_SET) < 0 || copy(fd, 1, length) < 0)
		return failed(errno, path);
	return 0;
}

static int make_parents(char *path)
{
	for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = 0;
		int bad = mkdir(path, 0755) < 0 && errno != EEXIST && errno != EROFS && access(path, F_OK) < 0;
		*slash = '/';
		if (bad)
			return -1;
	}
	return 0;
}

static char temporary[PATH_MAX + 16];

static void give_up(int number)
{
	unlink(temporary);
	_exit(128 + number);
}

static long long changed_at(const struct stat *st) { return st->st_mtim.tv_sec * 1000000000LL + st->st_mtim.tv_nsec; }

/* argument: SIZE[:MODE[:CHANGED]].  With CHANGED (ns since the epoch), only what was last changed then is replaced.
 * All or nothing: a neighbour is written and takes the name at the end.  An upload that broke
 * off (SIGTERM, or another size than was told beforehand) replaces nothing. */
static int write_file(char *path, const char *argument)
{
	char real[PATH_MAX];
	struct stat st = {.st_mode = 0644}, got;
	int mode = -1;
	long long size = -1, changed = -1;
	sscanf(argument, "%lld:%o:%lld", &size, (unsigned *)&mode, &changed);
	if (mode > 07777)
		mode = -1;
	if (make_parents(path) < 0)
		return failed(errno, path);
	/* Through a link, what it points to is written, as by any editor; but see go_to. */
	if ((no_links && !place_is_roots) || !realpath(path, real))
		snprintf(real, sizeof real, "%s", path);
	if (stat(real, &st) == 0 && !S_ISREG(st.st_mode))
		return failed(S_ISDIR(st.st_mode) ? EISDIR : EINVAL, path);
	snprintf(temporary, sizeof temporary, "%s.isobox-XXXXXX", real);
	signal(SIGTERM, give_up);
	int fd = mkostemp(temporary, O_CLOEXEC);
	if (fd < 0)
		return failed(errno, path);
	if (copy(0, fd, -1) < 0 || fchmod(fd, mode >= 0 ? (mode_t)mode : st.st_mode & 07777) < 0 || fstat(fd, &got) < 0 ||
	    (errno = EPIPE, size >= 0 && got.st_size != size) ||
	    (errno = ESTALE, changed >= 0 && (stat(real, &st) < 0 || changed_at(&st) != changed)) || rename(temporary, real) < 0) {
		int error = errno;
		unlink(temporary);
		return failed(error, path);
	}
	return stat_file(real, "");
}

static int remove_file(char *path, const char *recursive)
{
	struct stat st;
	if (lstat(path, &st) < 0 || (*recursive == '1' ? remove_tree(AT_FDCWD, path) : remove(path)) < 0)
		return failed(errno, path);
	return 0;
}

/* What a folder holds, less what is mounted there. */
static int empty(char *path, const char *argument)
{
	struct stat st;
	int fd = open_folder(AT_FDCWD, path, 1);
	(void)argument;
	if (fd < 0 || fstat(fd, &st) < 0 || empty_folder(fd, st.st_dev, 0) < 0)
		return failed(errno, path);
	return 0;
}

static int make_directory(char *path, const char *parents)
{
	if (*parents == '1' && make_parents(path) < 0)
		return failed(errno, path);
	struct stat st;
	if (mkdir(path, 0755) < 0 && !(*parents == '1' && errno == EEXIST && stat(path, &st) == 0 && S_ISDIR(st.st_mode)))
		return failed(errno, path);
	return stat_file(path, "");
}

/* ---- whole trees */

static int is_below(const char *path, const char *above)
{
	size_t n = strlen(above);
	return strncmp(path, above, n) == 0 && (path[n] == '/' || !path[n] || strcmp(above, "/") == 0);
}

/* By descriptor, as everything here that goes down a tree. */
static int copy_tree(int from, const char *name, int to, const char *target)
{
	char link[PATH_MAX];
	struct stat st;
	struct dirent *d;
	int in, out, bad;
	if (fstatat(from, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return -1;
	struct timespec times[2] = {st.st_mtim, st.st_mtim};
	if (S_ISLNK(st.st_mode)) {
		ssize_t n = readlinkat(from, name, link, sizeof link - 1);
		if (n < 0)
			return -1;
		link[n] = 0;
		return symlinkat(link, to, target);
	}
	if (S_ISREG(st.st_mode)) {
		if ((in = openat(from, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)) < 0)
			return -1;
		if ((out = openat(to, target, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600)) < 0)
			return close(in), -1;
		bad = copy(in, out, -1) < 0 || fchmod(out, st.st_mode & 07777) < 0 || futimens(out, times) < 0;
		close(in), close(out);
		return bad ? -1 : 0;
	}
	if (S_ISDIR(st.st_mode)) {
		if ((in = open_folder(from, name, 1)) < 0)
			return -1;
		DIR *dir = fdopendir(in);
		if (!dir || mkdirat(to, target, 0700) < 0 || (out = open_folder(to, target, 1)) < 0) {
			int error = errno;
			dir ? closedir(dir) : close(in);
			errno = error;
			return -1;
		}
		for (bad = 0; !bad && (d = readdir(dir));)
			if (strcmp(d->d_name, ".") != 0 && strcmp(d->d_name, "..") != 0)
				bad = copy_tree(in, d->d_name, out, d->d_name) < 0;
		bad = bad || fchmod(out, st.st_mode & 07777) < 0 || futimens(out, times) < 0;
		int error = errno;
		closedir(dir), close(out);
		errno = error;
		return bad ? -1 : 0;
	}
	if (S_ISFIFO(st.st_mode))
		return mkfifoat(to, target, st.st_mode & 0777) < 0 || utimensat(to, target, times, AT_SYMLINK_NOFOLLOW) < 0 ? -1 : 0;
	return 0; /* a socket is nothing without its program */
}

/* What is to take a name: 1 if it may, after what had it is gone. */
static int make_way(char *to, int overwrite)
{
	struct stat st;
	if (make_parents(to) < 0)
		return 0;
	if (lstat(to, &st) < 0)
		return errno == ENOENT;
	errno = EEXIST;
	return overwrite;
}

/* argument: 0 or 1 (overwrite), then the new name.  The copy stands beside its place until it is whole. */
static int copy_path(char *path, const char *argument)
{
	char to[PATH_MAX], aside[PATH_MAX + 16];
	snprintf(to, sizeof to, "%s", argument + 1);
	snprintf(aside, sizeof aside, "%s.isobox-%d", to, (int)getpid());
	if (is_below(to, path))
		return failed(EINVAL, to);
	if (!make_way(to, *argument == '1'))
		return failed(errno, to);
	if (copy_tree(AT_FDCWD, path, AT_FDCWD, aside) < 0 || (clear(AT_FDCWD, to), rename(aside, to)) < 0) {
		int error = errno;
		remove_tree(AT_FDCWD, aside);
		return failed(error, path);
	}
	return stat_file(to, "");
}

static int move_path(char *path, const char *argument)
{
	char to[PATH_MAX];
	struct stat st, there;
	snprintf(to, sizeof to, "%s", argument + 1);
	if (lstat(path, &st) < 0)
		return failed(errno, path);
	if (is_below(to, path) && strcmp(to, path) != 0)
		return failed(EINVAL, to);
	if (!make_way(to, *argument == '1'))
		return failed(errno, to);
	if (lstat(to, &there) == 0 && (S_ISDIR(there.st_mode) || S_ISDIR(st.st_mode)) && strcmp(to, path) != 0)
		clear(AT_FDCWD, to);
	if (rename(path, to) == 0)
		return stat_file(to, "");
	if (errno != EXDEV)
		return failed(errno, path);
	int bad = copy_path(path, argument);
	if (!bad && remove_tree(AT_FDCWD, path) < 0)
		return failed(errno, path);
	return bad;
}

/* By descriptor: a name may be given to a link between the look and the deed. */
static int chmod_tree(int at, const char *name, mode_t mode, int recursive)
{
	char self[64];
	struct stat st;
	struct dirent *d;
	int fd = openat(at, name, O_PATH | O_NOFOLLOW | O_CLOEXEC), bad = 0;
	if (fd < 0)
		return -1;
	if (fstat(fd, &st) < 0 || S_ISLNK(st.st_mode)) {
		close(fd);
		return 0;
	}
	int listed = recursive && S_ISDIR(st.st_mode) ? open_folder(fd, ".", 1) : -1;
	DIR *dir = listed < 0 ? NULL : fdopendir(listed);
	snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
	if (chmod(self, mode) < 0)
		bad = errno;
	while (!bad && dir && (d = readdir(dir)))
		if (strcmp(d->d_name, ".") != 0 && strcmp(d->d_name, "..") != 0 && chmod_tree(listed, d->d_name, mode, 1) < 0)
			bad = errno;
	if (dir)
		closedir(dir);
	close(fd);
	errno = bad;
	return bad ? -1 : 0;
}

/* argument: 0 or 1 (recursive), then the mode in octal. */
static int chmod_path(char *path, const char *argument)
{
	mode_t mode = (mode_t)strtoul(argument + 1, NULL, 8) & 07777;
	if (*argument == '1' ? chmod_tree(AT_FDCWD, path, mode, 1) : chmod(path, mode))
		return failed(errno, path);
	return stat_file(path, "");
}

/* dev: of the folder that is packed, for one that is not to reach into mounts; else 0. */
static void pack_tree(int at, const char *path, const char *name, dev_t dev, int of_root)
{
	char target[PATH_MAX];
	struct stat st;
	struct dirent *d;
	ssize_t n;
	if (fstatat(at, path, &st, AT_SYMLINK_NOFOLLOW) < 0) {
		if (errno == ENOENT && *name) /* it has just gone */
			return;
		die(path);
	}
	if (S_ISREG(st.st_mode)) {
		int fd = openat(at, path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
		if (fd < 0 || fstat(fd, &st) < 0)
			die(path);
		if (S_ISREG(st.st_mode))
			put_file(fd, name, &st);
		close(fd);
	} else if (S_ISLNK(st.st_mode)) {
		if ((n = readlinkat(at, path, target, sizeof target - 1)) < 0)
			die(path);
		target[n] = 0;
		put_entry(name, target, '2', 0, &st);
	} else if (S_ISFIFO(st.st_mode)) {
		put_entry(name, "", '6', 0, &st);
	} else if (S_ISDIR(st.st_mode) && (!dev || st.st_dev == dev)) {
		int fd = open_folder(at, path, 1);
		DIR *dir = fd < 0 ? NULL : fdopendir(fd);
		if (!dir)
			die(path);
		if (*name) {
			snprintf(target, sizeof target, "%s/", name);
			put_entry(target, "", '5', 0, &st);
		}
		while ((d = readdir(dir))) {
			const char *below = d->d_name;
			if (strcmp(below, ".") == 0 || strcmp(below, "..") == 0)
				continue;
			if (of_root && (strcmp(below, "proc") == 0 || strcmp(below, "sys") == 0 || strcmp(below, "dev") == 0))
				continue;
			if (snprintf(target, sizeof target, "%s%s%s", name, *name ? "/" : "", below) >= (int)sizeof target)
				errno = ENAMETOOLONG, die(path);
			pack_tree(fd, below, target, dev, 0);
		}
		closedir(dir);
	}
}

/* A folder's contents, or one file, as a tar archive on stdout. */
static int pack(char *path, const char *argument)
{
	struct stat st;
	(void)argument;
	if (lstat(path, &st) < 0)
		return failed(errno, path);
	entry(stderr, path, path, &st);
	fflush(stderr);
	pack_tree(AT_FDCWD, path, S_ISDIR(st.st_mode) ? "" : strrchr(path, '/') + 1, no_links ? st.st_dev : 0,
		  strcmp(path, "/") == 0);
	put_end();
	return 0;
}

/* A tar archive from stdin into a folder, which is made.  Its own names lead nowhere else. */
static int unpack(char *path, const char *argument)
{
	static struct entry e;
	int owners = *argument == '1', root;
	struct stat st;
	if (make_parents(path) < 0 || (mkdir(path, 0755) < 0 && errno != EEXIST) ||
	    (root = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0)
		return failed(errno, path);
	umask(0);
	while (next_entry(&e)) {
		char *name = e.path;
		while (*name == '/' || (*name == '.' && name[1] == '/'))
			name++;
		if (strcmp(name, ".") == 0 || !*name) { /* the folder itself */
			if (owners && (fchown(root, (uid_t)e.uid, (gid_t)e.gid) < 0 || fchmod(root, (mode_t)e.mode & 0777) < 0))
				return failed(errno, path);
			continue;
		}
		memmove(e.path, name, strlen(name) + 1);
		if (is_strange(e.path))
			return failed(EBADMSG, e.path);
		if (e.type == '1' && (is_strange(e.link) || strcmp(e.link, e.path) == 0))
			return failed(EBADMSG, e.link);
		apply_entry(root, &e, owners);
	}
	if (fstat(root, &st) < 0)
		return failed(errno, path);
	entry(stderr, path, path, &st);
	return 0;
}

int watch_path(char *path, const char *argument);
int hold(char *name, const char *argument);

/* Go to where a path leads when no link is followed that is not root's (place.c), and leave of it what is to be named
 * there: "." for a folder, a file's own name otherwise.  0, or -1 with errno. */
static int go_to(char *path, int folder, int create)
{
	char *slash = strrchr(path, '/');
	struct stat st;
	if (*path != '/') {
		errno = EINVAL;
		return -1;
	}
	if (!folder)
		*slash = 0;
	int fd = open_place(path, create);
	if (fd < 0 || fchdir(fd) < 0)
		return -1;
	close(fd);
	memmove(path, folder ? "." : slash + 1, folder ? 2 : strlen(slash + 1) + 1);
	if (!folder && !place_is_roots && lstat(path, &st) == 0 && S_ISLNK(st.st_mode)) {
		errno = ELOOP;
		return -1;
	}
	return 0;
}

/* As isobox-files-no-links it works for the host itself, with more rights than whoever may have prepared the way. */
int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int (*work)(char *path, const char *argument);
		int no_links; /* 1: of a folder, 2: of one that is made, 3: of a file, 4: of one whose folder is made */
	} operations[] = {{"stat", stat_file, 0}, {"list", list_files, 0}, {"read", read_file, 3},
			  {"write", write_file, 4}, {"remove", remove_file, 0}, {"mkdir", make_directory, 0}, {"page", page, 0},
			  {"copy", copy_path, 0}, {"move", move_path, 0}, {"chmod", chmod_path, 0}, {"pack", pack, 1},
			  {"unpack", unpack, 2}, {"empty", empty, 1}, {"watch", watch_path, 0}, {"hold", hold, 0}};
	int kind;
	for (size_t i = 0; argc == 4 && i < sizeof operations / sizeof *operations; i++)
		if (strcmp(argv[1], operations[i].name) == 0) {
			snprintf(named, sizeof named, "%s", argv[2]);
			no_links = strcmp(argv[0], "isobox-files-no-links") == 0;
			kind = operations[i].no_links;
			if (no_links && !kind)
				break;
			if (no_links && go_to(argv[2], kind < 3, kind % 2 == 0) < 0)
				return failed(errno, named);
			return operations[i].work(argv[2], argv[3]);
		}
	return failed(ENOSYS, "operation");
}
