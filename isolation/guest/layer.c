/*
 * A sandbox's changes to its image, as an image layer (a tar archive with whiteouts, OCI image-spec layer.md), and back.
 *
 * argv: isobox-layer save SINCE | isobox-layer apply
 *
 * save   the base image's names on stdin, the layer on stdout.  Changed is what has a ctime after SINCE (seconds since
 *        the epoch, when the image was made): nobody can set that.  A folder that holds something changed was copied
 *        into the upper layer and so is changed itself: others are not entered.  Mounts and /.isobox are left out,
 *        and so is /etc/hosts while the sandbox's own name is all that is new there.
 *        Names: "./FOLDER/" and then each name in it, all NUL-terminated.
 * apply  a layer on stdin; the host table gets this sandbox's name instead of the other's.
 *
 * A program of its own that the host brings along: no image holds it.  Folders follow what they hold, so that their
 * times and modes are set last.  What fails is told on stderr.
 */
#include "names.h"
#include "tar.h"

struct link {
	dev_t dev;
	ino_t ino;
	char *path;
};

static char *names, **folders;
static size_t nfolders, names_size, nlinks;
static struct link *links;
static time_t since;
static dev_t root_dev;

void die(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
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

/* What the base has in this folder (named as in the list) and is gone: how many. */
static int put_whiteouts(int dir, const char *folder)
{
	int count = 0;
	static const struct stat nothing = {.st_mode = 0};
	char name[PATH_MAX];
	struct stat st;
	char **found = bsearch(&folder, folders, nfolders, sizeof *folders, by_name);
	if (!found)
		return 0;
	for (char *at = *found + strlen(*found) + 1; at < names + names_size && !strchr(at, '/'); at += strlen(at) + 1) {
		if (fstatat(dir, at, &st, AT_SYMLINK_NOFOLLOW) == 0 || errno != ENOENT)
			continue;
		if (snprintf(name, sizeof name, "%s.wh.%s", folder + 2, at) >= (int)sizeof name)
			errno = ENAMETOOLONG, die(folder);
		put_entry(name, "", '0', 0, &nothing);
		count++;
	}
	return count;
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

/* Whether a member was written. */
static int save_file(int dir, const char *name, const char *path)
{
	struct stat st;
	const char *first;
	int fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT) /* it has just gone */
		return 0;
	if (fd < 0 || fstat(fd, &st) < 0)
		die(path);
	if (!S_ISREG(st.st_mode) || (strcmp(path, &HOSTS_PATH[1]) == 0 && is_plain_hosts(fd))) {
		close(fd);
		return 0;
	}
	if (st.st_nlink > 1 && (first = linked(&st, path)))
		put_entry(path, first, '1', 0, &st);
	else
		put_file(fd, path, &st);
	close(fd);
	return 1;
}

/* The folder of the host table is changed by PID 1: by itself that is no change of the guest's. */
static int is_plain_etc(const char *path, const struct stat *st)
{
	return strcmp(path, "./etc/") == 0 && st->st_uid == 0 && st->st_gid == 0 && (st->st_mode & 07777) == 0755;
}

/* folder is "./" or "./some/folder/"; returns how many members were written. */
static int save_folder(int fd, const char *folder)
{
	int count;
	char path[PATH_MAX], target[PATH_MAX];
	struct dirent *d;
	struct stat st;
	ssize_t n;
	DIR *dir = fdopendir(fd);
	if (!dir)
		die(folder);
	count = put_whiteouts(fd, folder);
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
			int below = open_folder(fd, name, 1);
			if (below < 0)
				die(path);
			strcat(path, "/");
			int inside = save_folder(below, path);
			count += inside;
			if (!inside && is_plain_etc(path, &st))
				continue;
			put_entry(path + 2, "", '5', 0, &st);
			count++;
		} else if (S_ISREG(st.st_mode)) {
			count += save_file(fd, name, path + 2);
		} else if (S_ISLNK(st.st_mode)) {
			if ((n = readlinkat(fd, name, target, sizeof target - 1)) < 0)
				die(path);
			target[n] = 0;
			put_entry(path + 2, target, '2', 0, &st);
			count++;
		} else if (S_ISFIFO(st.st_mode)) {
			put_entry(path + 2, "", '6', 0, &st);
			count++;
		}
	}
	if (errno)
		die(folder);
	closedir(dir);
	return count;
}

static int save(const char *moment)
{
	struct stat st;
	int root = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (root < 0 || fstat(root, &st) < 0)
		die("/");
	since = (time_t)atoll(moment);
	root_dev = st.st_dev;
	read_names();
	save_folder(root, "./");
	put_end();
	return 0;
}

/* ---- and back */

static int apply(void)
{
	static struct entry e;
	int root = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	char name[HOST_NAME_MAX + 1] = "";
	umask(0);
	if (root < 0)
		die("/");
	while (next_entry(&e)) {
		/* Everything stays inside this sandbox whatever the layer says; this only keeps it from saying nonsense. */
		if (is_strange(e.path) || strncmp(e.path, ".isobox/", 8) == 0)
			errno = EINVAL, die(e.path);
		char *last = strrchr(e.path, '/');
		last = last ? last + 1 : e.path;
		if (strncmp(last, ".wh.", 4) == 0) {
			memmove(last, last + 4, strlen(last + 4) + 1);
			clear_entry(root, e.path);
			continue;
		}
		apply_entry(root, &e, 1);
	}
	if (gethostname(name, sizeof name - 1) == 0)
		write_own_name(name);
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
