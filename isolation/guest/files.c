/*
 * File operations, in a process of the sandbox's user: what may be touched is
 * decided by the guest's own kernel and permissions, never by the host.
 *
 * argv: isobox-files OPERATION PATH [ARGUMENT].  Contents travel over stdin and
 * stdout; entries and errors are NUL-terminated fields (names are any bytes),
 * entries of `list` on stdout, of all others on stderr:
 *   type mode uid gid size mtime_ns name target      |      error errno detail
 */
#include "init.h"

static char buffer[1 << 18];

static int failed(int error, const char *detail)
{
	fprintf(stderr, "error%c%d%c%s%c", 0, error, 0, detail, 0);
	return 1;
}

static void entry(FILE *to, const char *path, const char *name, const struct stat *st)
{
	char target[PATH_MAX] = "";
	const char *type = S_ISREG(st->st_mode) ? "file" : S_ISDIR(st->st_mode) ? "dir" : S_ISLNK(st->st_mode) ? "symlink" : "other";
	if (S_ISLNK(st->st_mode) && readlink(path, target, sizeof target - 1) < 0)
		*target = 0;
	fprintf(to, "%s%c%o%c%u%c%u%c%lld%c%lld%c%s%c%s%c", type, 0, st->st_mode & 07777, 0, st->st_uid, 0, st->st_gid, 0,
		(long long)st->st_size, 0, st->st_mtim.tv_sec * 1000000000LL + st->st_mtim.tv_nsec, 0, name, 0, target, 0);
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

static int list(const char *root, const char *below, int depth)
{
	char path[PATH_MAX], name[PATH_MAX];
	struct stat st;
	struct dirent *d;
	if (snprintf(path, sizeof path, "%s%s%s", root, *below ? "/" : "", below) >= (int)sizeof path)
		return failed(ENAMETOOLONG, below);
	DIR *dir = opendir(path);
	if (!dir) /* a folder below that may not be read is listed, but not entered */
		return *below ? 0 : failed(errno, path);
	while ((d = readdir(dir))) {
		if (strcmp(d->d_name, ".") == 0 || strcmp(d->d_name, "..") == 0)
			continue;
		if (snprintf(name, sizeof name, "%s%s%s", below, *below ? "/" : "", d->d_name) >= (int)sizeof name ||
		    snprintf(path, sizeof path, "%s/%s", root, name) >= (int)sizeof path || lstat(path, &st) < 0)
			continue;
		entry(stdout, path, name, &st);
		if (S_ISDIR(st.st_mode) && depth > 1)
			list(root, name, depth - 1);
	}
	closedir(dir);
	return 0;
}

static int list_files(char *path, const char *depth) { return list(path, "", atoi(depth)); }

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

/* All or nothing: a neighbour is written and takes the name at the end.  An upload that broke
 * off (SIGTERM, or another size than was told beforehand) replaces nothing. */
static int write_file(char *path, const char *argument)
{
	char real[PATH_MAX];
	struct stat st = {.st_mode = 0644}, got;
	int mode = -1;
	long long size = -1;
	sscanf(argument, "%lld:%o", &size, (unsigned *)&mode);
	if (make_parents(path) < 0)
		return failed(errno, path);
	/* Through a link, what it points to is written, as by any editor. */
	if (!realpath(path, real))
		snprintf(real, sizeof real, "%s", path);
	if (stat(real, &st) == 0 && !S_ISREG(st.st_mode))
		return failed(S_ISDIR(st.st_mode) ? EISDIR : EINVAL, path);
	snprintf(temporary, sizeof temporary, "%s.isobox-XXXXXX", real);
	signal(SIGTERM, give_up);
	int fd = mkostemp(temporary, O_CLOEXEC);
	if (fd < 0)
		return failed(errno, path);
	if (copy(0, fd, -1) < 0 || fchmod(fd, mode >= 0 ? (mode_t)mode : st.st_mode & 07777) < 0 || fstat(fd, &got) < 0 ||
	    (errno = EPIPE, size >= 0 && got.st_size != size) || rename(temporary, real) < 0) {
		int error = errno;
		unlink(temporary);
		return failed(error, path);
	}
	return stat_file(real, "");
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at)
{
	(void)st, (void)kind, (void)at;
	return remove(path);
}

static int remove_file(char *path, const char *recursive)
{
	int bad = *recursive == '1' ? nftw(path, remove_one, 64, FTW_DEPTH | FTW_PHYS) : remove(path);
	return bad ? failed(errno, path) : 0;
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

int files_main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int (*work)(char *path, const char *argument);
	} operations[] = {{"stat", stat_file}, {"list", list_files}, {"read", read_file},
			  {"write", write_file}, {"remove", remove_file}, {"mkdir", make_directory}};
	for (size_t i = 0; argc == 4 && i < sizeof operations / sizeof *operations; i++)
		if (strcmp(argv[1], operations[i].name) == 0)
			return operations[i].work(argv[2], argv[3]);
	return failed(ENOSYS, "operation");
}
