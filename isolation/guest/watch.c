/*
 * Tells what changes below a folder, as long as somebody listens.
 *
 * On stdout, NUL-terminated fields, three an event: type, path, target.  Types: ready (once, when nothing more can be
 * missed), created, modified, deleted, attributes, moved (to target), overflow (some were lost), gone (the watched itself).
 */
#include "tar.h"
#include <sys/inotify.h>

#define WATCHES_MAX 8192
#define EVENTS (IN_CREATE | IN_MODIFY | IN_CLOSE_WRITE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO | IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF)

static char *watched[WATCHES_MAX + 1], last[PATH_MAX + 32];
static int notify, recursive;

static void tell(const char *type, const char *path, const char *target)
{
	char line[PATH_MAX + 32];
	snprintf(line, sizeof line, "%s %s", type, path);
	if (strcmp(type, "modified") == 0 && strcmp(line, last) == 0)
		return;
	strcpy(last, line);
	printf("%s%c%s%c%s%c", type, 0, path, 0, target, 0);
}

static int watch(const char *path, int told)
{
	char below[PATH_MAX];
	struct dirent *d;
	struct stat st;
	int wd = inotify_add_watch(notify, path, EVENTS | IN_DONT_FOLLOW);
	if (wd < 0)
		return -1;
	if (wd > WATCHES_MAX) {
		inotify_rm_watch(notify, wd);
		errno = ENOSPC;
		return -1;
	}
	free(watched[wd]);
	watched[wd] = strdup(path);
	DIR *dir = recursive || told ? opendir(path) : NULL;
	while (dir && (d = readdir(dir))) {
		if (strcmp(d->d_name, ".") == 0 || strcmp(d->d_name, "..") == 0 ||
		    snprintf(below, sizeof below, "%s/%s", strcmp(path, "/") ? path : "", d->d_name) >= (int)sizeof below)
			continue;
		if (told)
			tell("created", below, "");
		if (recursive && lstat(below, &st) == 0 && S_ISDIR(st.st_mode) && watch(below, told) < 0 && errno == ENOSPC) {
			closedir(dir);
			errno = ENOSPC;
			return -1;
		}
	}
	if (dir)
		closedir(dir);
	return 0;
}

static void name_of(char *to, const struct inotify_event *event)
{
	const char *folder = event->wd > 0 && event->wd <= WATCHES_MAX && watched[event->wd] ? watched[event->wd] : "";
	if (event->len && *event->name)
		snprintf(to, PATH_MAX, "%s/%s", strcmp(folder, "/") ? folder : "", event->name);
	else
		snprintf(to, PATH_MAX, "%s", folder);
}

static void hear(const char *from, const char *end)
{
	char path[PATH_MAX], target[PATH_MAX];
	for (const struct inotify_event *event; from < end; from += sizeof *event + event->len) {
		event = (const void *)from;
		const struct inotify_event *next = (const void *)(from + sizeof *event + event->len);
		name_of(path, event);
		if (event->mask & IN_Q_OVERFLOW) {
			tell("overflow", "", "");
		} else if (event->mask & IN_MOVED_FROM && (const char *)next < end && next->mask & IN_MOVED_TO && next->cookie == event->cookie) {
			name_of(target, next);
			tell("moved", path, target);
			if (recursive && next->mask & IN_ISDIR)
				watch(target, 0);
			from += sizeof *event + event->len;
			event = next;
		} else if (event->mask & (IN_CREATE | IN_MOVED_TO)) {
			tell("created", path, "");
			if (recursive && event->mask & IN_ISDIR)
				watch(path, 1);
		} else if (event->mask & (IN_MODIFY | IN_CLOSE_WRITE)) {
			tell("modified", path, "");
		} else if (event->mask & (IN_DELETE | IN_MOVED_FROM)) {
			tell("deleted", path, "");
		} else if (event->mask & IN_ATTRIB) {
			tell("attributes", path, "");
		} else if (event->mask & (IN_DELETE_SELF | IN_MOVE_SELF) && event->wd == 1) {
			tell("gone", path, "");
			fflush(stdout);
			exit(0);
		}
	}
}

int watch_path(char *path, const char *argument)
{
	static char events[1 << 16] __attribute__((aligned(8)));
	recursive = *argument == '1';
	if ((notify = inotify_init1(IN_CLOEXEC)) < 0 || watch(path, 0) < 0) {
		fprintf(stderr, "error%c%d%c%s%c", 0, errno, 0, path, 0);
		return 1;
	}
	tell("ready", path, "");
	for (ssize_t n; fflush(stdout) == 0;) {
		if ((n = read(notify, events, sizeof events)) <= 0)
			break;
		hear(events, events + n);
	}
	return 0;
}
