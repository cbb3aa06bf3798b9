/*
 * A sandbox's changes to its image, as an image layer (a tar archive with whiteouts, OCI image-spec layer.md), and back.
 *
 * argv: isobox-layer save SINCE | isobox-layer apply
 *
 * save   the base image's names on stdin, the layer on stdout.  Changed is what has a ctime after SINCE (seconds since
 *        the epoch, when the image was made): nobody can set that.  A folder that holds something changed was copied
 *        into the upper layer and so is changed itself: others are not entered.  Mounts and /.isobox are left out.
 *        Names: "./FOLDER/" and then each name in it, all NUL-terminated.
 * apply  a layer on stdin.
 *
 * A program of its own that the host brings along: no image holds it.  Folders follow what they hold, so that their
 * times and modes are set last.  What fails is told on stderr.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BLOCK 512
#define PAX_MAX (2 * PATH_MAX + 256)

struct header { /* ustar */
	char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], sum[8], type, link[100], magic[8];
	char uname[32], gname[32], major[8], minor[8], prefix[155], rest[12];
};
_Static_assert(sizeof(struct header) == BLOCK, "a header is one block");

struct link {
	dev_t dev;
	ino_t ino;
	char *path;
};

static char buffer[1 << 18], *names, **folders;
static size_t used, nfolders, names_size, nlinks;
static struct link *links;
static time_t since;
static dev_t root_dev;

static void die(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

static void *must(void *allocated)
{
	if (!allocated)
		die("memory");
	return allocated;
}

/* ---- writing */

static void flush(void)
{
	for (size_t done = 0; done < used;) {
		ssize_t n = write(1, buffer + done, used - done);
		if (n < 0)
			die("the layer");
		done += (size_t)n;
	}
	used = 0;
}

static void put(const void *data, size_t size)
{
	for (const char *from = data; size;) {
		size_t room = sizeof buffer - used, n = size < room ? size : room;
		memcpy(buffer + used, from, n);
		used += n, from += n, size -= n;
		if (used == sizeof buffer)
			flush();
	}
}

static void pad(uint64_t size)
{
	static const char zeros[BLOCK];
	put(zeros, (BLOCK - size % BLOCK) % BLOCK);
}

static void put_header(const char *name, const char *link, char type, uint64_t size, const struct stat *st)
{
	struct header h = {.type = type};
	char octal[24];
	unsigned sum = 0;
	memcpy(h.magic, "ustar\00000", sizeof h.magic);
	strncpy(h.name, name, sizeof h.name);
	strncpy(h.link, link, sizeof h.link);
#define OCTAL(field, value) snprintf(octal, sizeof octal, "%0*llo", (int)sizeof h.field - 1, (unsigned long long)(value)), memcpy(h.field, octal, sizeof h.field - 1)
	OCTAL(mode, st->st_mode & 07777);
	OCTAL(uid, st->st_uid & 07777777);
	OCTAL(gid, st->st_gid & 07777777);
	OCTAL(size, size & 077777777777);
	OCTAL(mtime, st->st_mtim.tv_sec < 0 ? 0 : st->st_mtim.tv_sec);
	memset(h.sum, ' ', sizeof h.sum);
	for (size_t i = 0; i < BLOCK; i++)
		sum += ((unsigned char *)&h)[i];
	snprintf(octal, sizeof octal, "%06o", sum);
	memcpy(h.sum, octal, 7);
	put(&h, sizeof h);
}

/* " LENGTH key=value\n", the length counting itself (pax(1)). */
static size_t record(char *to, const char *key, const char *value)
{
	size_t bare = strlen(key) + strlen(value) + 3, whole = bare + 1;
	char digits[24];
	while (bare + (size_t)snprintf(digits, sizeof digits, "%zu", whole) != whole)
		whole = bare + strlen(digits);
	return (size_t)sprintf(to, "%s %s=%s\n", digits, key, value);
}

static void put_entry(const char *name, const char *link, char type, uint64_t size, const struct stat *st)
{
	static char pax[PAX_MAX];
	char number[32];
	size_t n = 0;
	if (strlen(name) > sizeof ((struct header *)0)->name)
		n += record(pax + n, "path", name);
	if (strlen(link) > sizeof ((struct header *)0)->link)
		n += record(pax + n, "linkpath", link);
	if (size > 077777777777)
		snprintf(number, sizeof number, "%llu", (unsigned long long)size), n += record(pax + n, "size", number);
	if (st->st_uid > 07777777)
		snprintf(number, sizeof number, "%u", st->st_uid), n += record(pax + n, "uid", number);
	if (st->st_gid > 07777777)
		snprintf(number, sizeof number, "%u", st->st_gid), n += record(pax + n, "gid", number);
	if (n) {
		struct stat plain = {.st_mode = 0644};
		put_header("pax", "", 'x', n, &plain);
		put(pax, n);
		pad(n);
	}
	put_header(name, link, type, size, st);
}

/* ---- what changed */

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static void read_names(void)
{
	size_t room = 1 << 20;
	ssize_t n;
	names = must(malloc(room + 2));
	while ((n = read(0, names + names_size, room - names_size)) > 0)
		if ((names_size += (size_t)n) == room)
			names = must(realloc(names, (room *= 2) + 2));
	if (n < 0)
		die("names");
	names[names_size] = 0;
	for (char *at = names; at < names + names_size; at += strlen(at) + 1)
		nfolders += strchr(at, '/') != NULL;
	folders = must(calloc(nfolders + 1, sizeof *folders));
	nfolders = 0;
	for (char *at = names; at < names + names_size; at += strlen(at) + 1)
		if (strchr(at, '/'))
			folders[nfolders++] = at;
	qsort(folders, nfolders, sizeof *folders, by_name);
}

/* What the base has in this folder (named as in the list) and is gone. */
static void put_whiteouts(int dir, const char *folder)
{
	static const struct stat nothing = {.st_mode = 0};
	char name[PATH_MAX];
	struct stat st;
	char **found = bsearch(&folder, folders, nfolders, sizeof *folders, by_name);
	if (!found)
		return;
	for (char *at = *found + strlen(*found) + 1; at < names + names_size && !strchr(at, '/'); at += strlen(at) + 1) {
		if (fstatat(dir, at, &st, AT_SYMLINK_NOFOLLOW) == 0 || errno != ENOENT)
			continue;
		if (snprintf(name, sizeof name, "%s.wh.%s", folder + 2, at) >= (int)sizeof name)
			errno = ENAMETOOLONG, die(folder);
		put_entry(name, "", '0', 0, &nothing);
	}
}

static const char *linked(const struct stat *st, const char *path)
{
	for (size_t i = 0; i < nlinks; i++)
		if (links[i].ino == st->st_ino && links[i].dev == st->st_dev)
			return links[i].path;
	links = must(realloc(links, (nlinks + 1) * sizeof *links));
	links[nlinks++] = (struct link){st->st_dev, st->st_ino, must(strdup(path))};
	return NULL;
}

static void save_file(int dir, const char *name, const char *path)
{
	static char piece[1 << 16];
	struct stat st;
	const char *first;
	int fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT) /* it has just gone */
		return;
	if (fd < 0 || fstat(fd, &st) < 0)
		die(path);
	if (!S_ISREG(st.st_mode)) {
		close(fd);
		return;
	}
	if (st.st_nlink > 1 && (first = linked(&st, path))) {
		put_entry(path, first, '1', 0, &st);
		close(fd);
		return;
	}
	put_entry(path, "", '0', (uint64_t)st.st_size, &st);
	for (uint64_t left = (uint64_t)st.st_size; left;) {
		size_t want = left < sizeof piece ? left : sizeof piece;
		ssize_t n = read(fd, piece, want);
		if (n < 0)
			die(path);
		if (n == 0) /* it has just shrunk */
			memset(piece, 0, (size_t)(n = (ssize_t)want));
		put(piece, (size_t)n);
		left -= (uint64_t)n;
	}
	pad((uint64_t)st.st_size);
	close(fd);
}

/* folder is "./" or "./some/folder/". */
static void save_folder(int fd, const char *folder)
{
	char path[PATH_MAX], target[PATH_MAX];
	struct dirent *d;
	struct stat st;
	ssize_t n;
	DIR *dir = fdopendir(fd);
	if (!dir)
		die(folder);
	put_whiteouts(fd, folder);
	while ((errno = 0, d = readdir(dir))) {
		const char *name = d->d_name;
		if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0 || fstatat(fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
			continue;
		if (st.st_ctim.tv_sec < since || (S_ISDIR(st.st_mode) && st.st_dev != root_dev))
			continue;
		if (snprintf(path, sizeof path, "%s%s", folder, name) >= (int)sizeof path - 1)
			errno = ENAMETOOLONG, die(folder);
		if (S_ISDIR(st.st_mode)) {
			if (strcmp(path, "./.isobox") == 0)
				continue;
			int below = openat(fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
			if (below < 0)
				die(path);
			strcat(path, "/");
			save_folder(below, path);
			put_entry(path + 2, "", '5', 0, &st);
		} else if (S_ISREG(st.st_mode)) {
			save_file(fd, name, path + 2);
		} else if (S_ISLNK(st.st_mode)) {
			if ((n = readlinkat(fd, name, target, sizeof target - 1)) < 0)
				die(path);
			target[n] = 0;
			put_entry(path + 2, target, '2', 0, &st);
		} else if (S_ISFIFO(st.st_mode)) {
			put_entry(path + 2, "", '6', 0, &st);
		}
	}
	if (errno)
		die(folder);
	closedir(dir);
}

static int save(const char *moment)
{
	static const char end[2 * BLOCK];
	struct stat st;
	int root = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (root < 0 || fstat(root, &st) < 0)
		die("/");
	since = (time_t)atoll(moment);
	root_dev = st.st_dev;
	read_names();
	save_folder(root, "./");
	put(end, sizeof end);
	flush();
	return 0;
}

/* ---- and back */

static int get(void *to, size_t size)
{
	for (size_t had = 0; had < size;) {
		ssize_t n = read(0, (char *)to + had, size - had);
		if (n < 0)
			die("the layer");
		if (n == 0)
			return had ? (errno = EPIPE, die("the layer is cut short"), 0) : 0;
		had += (size_t)n;
	}
	return 1;
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at)
{
	(void)st, (void)kind, (void)at;
	return remove(path);
}

static void clear(const char *path)
{
	if (unlink(path) < 0 && errno != ENOENT && nftw(path, remove_one, 64, FTW_DEPTH | FTW_PHYS | FTW_MOUNT) < 0)
		die(path);
}

static void make_folder(const char *path, mode_t mode)
{
	struct stat st;
	if (mkdir(path, mode) == 0)
		return;
	if (errno != EEXIST)
		die(path);
	if (lstat(path, &st) == 0 && S_ISDIR(st.st_mode))
		return;
	clear(path);
	if (mkdir(path, mode) < 0)
		die(path);
}

static void make_parents(char *path)
{
	for (char *slash = strchr(path, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = 0;
		make_folder(path, 0755);
		*slash = '/';
	}
}

static uint64_t number(const char *field, size_t size)
{
	char text[24] = "";
	memcpy(text, field, size);
	return strtoull(text, NULL, 8);
}

struct entry {
	char path[PATH_MAX], link[PATH_MAX];
	uint64_t size, uid, gid, mode, mtime;
};

static void read_pax(struct entry *e, uint64_t size)
{
	static char pax[PAX_MAX + BLOCK];
	size_t whole = (size + BLOCK - 1) / BLOCK * BLOCK;
	if (size > PAX_MAX || !get(pax, whole))
		errno = EINVAL, die("the layer");
	for (char *at = pax; at < pax + size;) {
		char *key = strchr(at, ' '), *value = key ? strchr(key, '=') : NULL;
		size_t length = strtoul(at, NULL, 10);
		if (!value || length == 0 || length > (size_t)(pax + size - at) || value > at + length || at[length - 1] != '\n')
			errno = EINVAL, die("the layer");
		at[length - 1] = *value++ = 0, key++;
		if (strcmp(key, "path") == 0)
			snprintf(e->path, sizeof e->path, "%s", value);
		else if (strcmp(key, "linkpath") == 0)
			snprintf(e->link, sizeof e->link, "%s", value);
		else if (strcmp(key, "size") == 0)
			e->size = strtoull(value, NULL, 10);
		else if (strcmp(key, "uid") == 0)
			e->uid = strtoull(value, NULL, 10);
		else if (strcmp(key, "gid") == 0)
			e->gid = strtoull(value, NULL, 10);
		at += length;
	}
}

/* Everything stays inside this sandbox whatever the layer says; this only keeps it from saying nonsense. */
static int is_strange(const char *path)
{
	return *path == '/' || !*path || strcmp(path, "..") == 0 || strncmp(path, "../", 3) == 0 || strstr(path, "/../") ||
	       strncmp(path, ".isobox/", 8) == 0;
}

static void write_contents(int fd, const char *path, uint64_t size)
{
	for (uint64_t left = (size + BLOCK - 1) / BLOCK * BLOCK, due = size; left;) {
		size_t n = left < sizeof buffer ? left : sizeof buffer, real = due < n ? due : n;
		if (!get(buffer, n))
			errno = EPIPE, die("the layer is cut short");
		if (fd >= 0 && write(fd, buffer, real) != (ssize_t)real)
			die(path);
		left -= n, due -= real;
	}
}

static void apply_entry(char type, struct entry *e)
{
	struct timespec times[2] = {{.tv_sec = (time_t)e->mtime}, {.tv_sec = (time_t)e->mtime}};
	char *last = strrchr(e->path, '/');
	last = last ? last + 1 : e->path;
	make_parents(e->path);
	if (strncmp(last, ".wh.", 4) == 0) {
		memmove(last, last + 4, strlen(last + 4) + 1);
		clear(e->path);
		return;
	}
	if (type == '5') {
		size_t n = strlen(e->path);
		if (e->path[n - 1] == '/')
			e->path[n - 1] = 0;
		make_folder(e->path, 0755);
	} else {
		clear(e->path);
		int fd, bad = 0;
		if (type == '0') {
			if ((fd = open(e->path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600)) < 0)
				die(e->path);
			write_contents(fd, e->path, e->size);
			close(fd);
		} else if (type == '1') {
			bad = link(e->link, e->path); /* the sentry of 2024 makes it root's: so the rest as well */
		} else if (type == '2') {
			bad = symlink(e->link, e->path);
		} else if (type == '6') {
			bad = mkfifo(e->path, 0600);
		} else {
			errno = EINVAL, bad = 1;
		}
		if (bad)
			die(e->path);
	}
	if (lchown(e->path, (uid_t)e->uid, (gid_t)e->gid) < 0 || (type != '2' && chmod(e->path, (mode_t)e->mode & 07777) < 0) ||
	    utimensat(AT_FDCWD, e->path, times, AT_SYMLINK_NOFOLLOW) < 0)
		die(e->path);
}

static int apply(void)
{
	static struct entry e;
	struct header h;
	umask(0);
	if (chdir("/") < 0)
		die("/");
	for (int described = 0; get(&h, sizeof h) && h.name[0];) {
		uint64_t size = number(h.size, sizeof h.size);
		if (!described)
			memset(&e, 0, sizeof e), e.size = e.uid = e.gid = UINT64_MAX;
		if (h.type == 'x') {
			read_pax(&e, size);
			described = 1;
			continue;
		}
		described = 0;
		if (!*e.path)
			snprintf(e.path, sizeof e.path, "%.100s", h.name);
		if (!*e.link)
			snprintf(e.link, sizeof e.link, "%.100s", h.link);
		e.size = e.size == UINT64_MAX ? size : e.size;
		e.uid = e.uid == UINT64_MAX ? number(h.uid, sizeof h.uid) : e.uid;
		e.gid = e.gid == UINT64_MAX ? number(h.gid, sizeof h.gid) : e.gid;
		e.mode = number(h.mode, sizeof h.mode);
		e.mtime = number(h.mtime, sizeof h.mtime);
		if (is_strange(e.path))
			errno = EINVAL, die(e.path);
		apply_entry(h.type, &e);
	}
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[1], "save") == 0)
		return save(argv[2]);
	if (argc == 2 && strcmp(argv[1], "apply") == 0)
		return apply();
	fputs("isobox-layer save SINCE | apply\n", stderr);
	return 2;
}
