/* A tar archive, written to stdout and read from stdin: ustar with pax records for what that does not hold. */
#include "tar.h"

#define BLOCK 512
#define PAX_MAX (2 * PATH_MAX + 256)
#define DEPTH_MAX 4096

struct header { /* ustar */
	char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], sum[8], type, link[100], magic[8];
	char uname[32], gname[32], major[8], minor[8], prefix[155], rest[12];
};
_Static_assert(sizeof(struct header) == BLOCK, "a header is one block");

static char buffer[1 << 18];
static size_t used;

void *must(void *allocated)
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

void put_entry(const char *name, const char *link, char type, uint64_t size, const struct stat *st)
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

void put_file(int fd, const char *path, const struct stat *st)
{
	static char piece[1 << 16];
	put_entry(path, "", '0', (uint64_t)st->st_size, st);
	for (uint64_t left = (uint64_t)st->st_size; left;) {
		size_t want = left < sizeof piece ? left : sizeof piece;
		ssize_t n = read(fd, piece, want);
		if (n < 0)
			die(path);
		if (n == 0) /* it has just shrunk */
			memset(piece, 0, (size_t)(n = (ssize_t)want));
		put(piece, (size_t)n);
		left -= (uint64_t)n;
	}
	pad((uint64_t)st->st_size);
}

void put_end(void)
{
	static const char end[2 * BLOCK];
	put(end, sizeof end);
	flush();
}

/* ---- reading */

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

/* A name and all below it.  With dev, not what is mounted there: an overlay gives its folders one device, its files
 * any.  0, or -1 with errno. */
static int remove_below(int at, const char *name, dev_t dev, int depth)
{
	struct stat st;
	int bad = 0;
	if (unlinkat(at, name, 0) == 0 || errno == ENOENT)
		return 0;
	int error = errno, fd = open_folder(at, name, 1);
	if (fd < 0) {
		if (errno == EACCES && unlinkat(at, name, AT_REMOVEDIR) == 0)
			return 0;
		errno = errno == ENOTDIR || errno == ELOOP ? error : errno;
		return -1;
	}
	if (fstat(fd, &st) < 0 || (dev && st.st_dev != dev) || depth == DEPTH_MAX) {
		close(fd);
		errno = depth == DEPTH_MAX ? ELOOP : EBUSY;
		return -1;
	}
	if (empty_folder(fd, dev, depth) < 0)
		bad = errno;
	if (unlinkat(at, name, AT_REMOVEDIR) == 0 || errno == ENOENT)
		return 0;
	errno = bad ? bad : errno;
	return -1;
}

/* What a folder holds; as much of it as can be removed.  Takes fd over. */
int empty_folder(int fd, dev_t dev, int depth)
{
	DIR *dir = fdopendir(fd);
	struct dirent *d;
	int bad = 0;
	if (!dir) {
		bad = errno;
		close(fd);
		errno = bad;
		return -1;
	}
	while ((d = readdir(dir)))
		if (strcmp(d->d_name, ".") != 0 && strcmp(d->d_name, "..") != 0 && remove_below(fd, d->d_name, dev, depth + 1) < 0)
			bad = errno;
	closedir(dir);
	errno = bad;
	return bad ? -1 : 0;
}

int remove_tree(int at, const char *name) { return remove_below(at, name, 0, 0); }

/* Make way for another: what is mounted there, or below, stays, and so the name. */
void clear(int at, const char *name)
{
	struct stat st;
	int known = at == AT_FDCWD ? fstatat(at, name, &st, AT_SYMLINK_NOFOLLOW) : fstat(at, &st);
	if ((known < 0 && errno != ENOENT) || (known == 0 && remove_below(at, name, st.st_dev, 0) < 0))
		die(name);
}

/* The folder of that name, made in the place of whatever else has it. */
static int make_folder(int at, const char *name, int reading)
{
	int fd = open_folder(at, name, reading);
	if (fd >= 0)
		return fd;
	if (errno == ENOTDIR || errno == ELOOP)
		clear(at, name);
	if ((mkdirat(at, name, 0755) < 0 && errno != EEXIST) || (fd = open_folder(at, name, reading)) < 0)
		die(name);
	return fd;
}

/* The folder of a path below the root, made with create; -1 if it is not there.  root itself for the empty path. */
static int walk(int root, const char *path, int create)
{
	char rest[PATH_MAX];
	int at = root, below;
	strcpy(rest, path);
	for (char *part = strtok(rest, "/"); part; part = strtok(NULL, "/"), at = below) {
		below = create ? make_folder(at, part, 0) : open_folder(at, part, 0);
		if (at != root)
			close(at);
		if (below < 0)
			return -1;
	}
	return at;
}

/* The folder of the last member stays open: most follow one another there. */
static char last_path[PATH_MAX];
static int last_folder = -1;

static void forget_last(void)
{
	if (last_folder >= 0)
		close(last_folder);
	last_folder = -1;
}

/* Where a member goes: its folder, made below the root, and its name there. */
static int parent_of(int root, char *path, const char **name)
{
	char *slash = strrchr(path, '/');
	*name = slash ? slash + 1 : path;
	if (!slash)
		return root;
	*slash = 0;
	if (last_folder < 0 || strcmp(last_path, path) != 0) {
		forget_last();
		int at = walk(root, path, 1);
		last_folder = at == root ? fcntl(root, F_DUPFD_CLOEXEC, 3) : at;
		strcpy(last_path, path);
	}
	*slash = '/';
	return last_folder;
}

/* Remove what has this path below the root, if anything has. */
void clear_entry(int root, char *path)
{
	char *slash = strrchr(path, '/');
	int at = root;
	forget_last();
	if (slash) {
		*slash = 0;
		at = walk(root, path, 0);
		*slash = '/';
	}
	if (at < 0)
		return;
	clear(at, slash ? slash + 1 : path);
	if (at != root)
		close(at);
}

/* Octal; or, of what is larger, GNU tar's: big-endian behind a first byte of 0x80. */
static uint64_t number(const char *field, size_t size)
{
	uint64_t large = 0;
	if ((unsigned char)*field == 0x80) {
		for (size_t i = 1; i < size; i++)
			large = large << 8 | (unsigned char)field[i];
		return large;
	}
	char text[24] = "";
	memcpy(text, field, size);
	return strtoull(text, NULL, 8);
}

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

int is_strange(const char *path)
{
	return *path == '/' || !*path || strcmp(path, "..") == 0 || strncmp(path, "../", 3) == 0 || strstr(path, "/../") ||
	       (strlen(path) > 2 && strcmp(path + strlen(path) - 3, "/..") == 0);
}

/* 0, or -1 with errno.  Where the disk gets full a write is short at first, and has no errno. */
static int write_whole(int fd, const char *from, size_t n)
{
	for (ssize_t written; n; from += written, n -= (size_t)written)
		if ((written = write(fd, from, n)) < 0)
			return -1;
	return 0;
}

static void write_contents(int fd, const char *path, uint64_t size)
{
	for (uint64_t left = (size + BLOCK - 1) / BLOCK * BLOCK, due = size; left;) {
		size_t n = left < sizeof buffer ? left : sizeof buffer, real = due < n ? due : n;
		if (!get(buffer, n))
			errno = EPIPE, die("the layer is cut short");
		if (fd >= 0 && write_whole(fd, buffer, real) < 0)
			die(path);
		left -= n, due -= real;
	}
}

static void read_long(char *to, uint64_t size)
{
	static char whole[PATH_MAX + BLOCK];
	size_t blocks = (size + BLOCK - 1) / BLOCK * BLOCK;
	if (size > PATH_MAX || !get(whole, blocks))
		errno = ENAMETOOLONG, die("the archive");
	whole[size] = 0;
	snprintf(to, PATH_MAX, "%s", whole);
}

int next_entry(struct entry *e)
{
	struct header h;
	int described = 0;
	memset(e, 0, sizeof *e), e->size = e->uid = e->gid = UINT64_MAX;
	while (get(&h, sizeof h) && h.name[0]) {
		uint64_t size = number(h.size, sizeof h.size);
		if (h.type == 'x' && !described) {
			read_pax(e, size);
			described = 1;
			continue;
		}
		if (h.type == 'g') { /* says nothing about files */
			write_contents(-1, "the archive", size);
			continue;
		}
		if (h.type == 'L' || h.type == 'K') { /* GNU tar's long names */
			read_long(h.type == 'L' ? e->path : e->link, size);
			continue;
		}
		if (!*e->path && *h.prefix && strncmp(h.magic, "ustar", 6) == 0)
			snprintf(e->path, sizeof e->path, "%.155s/%.100s", h.prefix, h.name);
		else if (!*e->path)
			snprintf(e->path, sizeof e->path, "%.100s", h.name);
		if (!*e->link)
			snprintf(e->link, sizeof e->link, "%.100s", h.link);
		e->type = h.type ? h.type : '0';
		e->size = e->size == UINT64_MAX ? size : e->size;
		e->uid = e->uid == UINT64_MAX ? number(h.uid, sizeof h.uid) : e->uid;
		e->gid = e->gid == UINT64_MAX ? number(h.gid, sizeof h.gid) : e->gid;
		e->mode = number(h.mode, sizeof h.mode);
		e->mtime = number(h.mtime, sizeof h.mtime);
		return 1;
	}
	return 0;
}

/* Owner, mode and time of what has just been made: by its descriptor, or of a link by its name.  Never through a name that
 * somebody may have given to something else meanwhile. */
static int describe(const struct entry *e, int fd, int owners)
{
	struct timespec times[2] = {{.tv_sec = (time_t)e->mtime}, {.tv_sec = (time_t)e->mtime}};
	return (owners && fchown(fd, (uid_t)e->uid, (gid_t)e->gid) < 0) ||
	       fchmod(fd, (mode_t)e->mode & (owners ? 07777 : 0777)) < 0 || futimens(fd, times) < 0;
}

static int make_link(int root, struct entry *e, int at, const char *name, int owners)
{
	char *slash = strrchr(e->link, '/');
	struct stat st;
	int folder = root, fd, bad;
	if (slash) {
		*slash = 0;
		if ((folder = walk(root, e->link, 0)) < 0)
			return -1;
	}
	bad = linkat(folder, slash ? slash + 1 : e->link, at, name, 0);
	if (folder != root)
		close(folder);
	if (bad || !owners) /* the file's own header said it all */
		return bad;
	/* The sentry of 2024 makes it root's: so the rest as well. */
	if ((fd = openat(at, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)) < 0)
		return errno == ELOOP ? 0 : -1;
	bad = fstat(fd, &st) < 0 || (S_ISREG(st.st_mode) && describe(e, fd, owners));
	close(fd);
	return bad;
}

void apply_entry(int root, struct entry *e, int owners)
{
	struct timespec times[2] = {{.tv_sec = (time_t)e->mtime}, {.tv_sec = (time_t)e->mtime}};
	const char *name;
	size_t n = strlen(e->path);
	while (n && e->path[n - 1] == '/')
		e->path[--n] = 0;
	int at = parent_of(root, e->path, &name), fd = -1, bad = 0;
	if (e->type == '5') {
		fd = make_folder(at, name, 1);
		bad = describe(e, fd, owners);
	} else {
		if (strncmp(last_path, e->path, n) == 0)
			forget_last(), at = parent_of(root, e->path, &name);
		clear(at, name);
		if (e->type == '0' || e->type == '7') {
			if ((fd = openat(at, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600)) < 0)
				die(e->path);
			write_contents(fd, e->path, e->size);
			bad = describe(e, fd, owners);
		} else if (e->type == '1') {
			bad = make_link(root, e, at, name, owners);
		} else if (e->type == '2' || e->type == '6') {
			bad = (e->type == '2' ? symlinkat(e->link, at, name) : mkfifoat(at, name, (mode_t)e->mode & 0777)) < 0 ||
			      (owners && fchownat(at, name, (uid_t)e->uid, (gid_t)e->gid, AT_SYMLINK_NOFOLLOW) < 0) ||
			      utimensat(at, name, times, AT_SYMLINK_NOFOLLOW) < 0;
		} else {
			errno = EINVAL, bad = 1;
		}
	}
	if (bad)
		die(e->path);
	if (fd >= 0)
		close(fd);
}
