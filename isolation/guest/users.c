/*
 * Who an exec runs as, from the sandbox's own /etc/passwd and /etc/group.
 *
 * Those files belong to the guest.  They are opened without blocking and read
 * only if regular and of reasonable size, so that no trick with them can stop
 * PID 1.
 */
#include "init.h"

#define DATABASE_MAX (1 << 20)

static char *read_database(const char *path)
{
	struct stat st;
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return NULL;
	char *text = NULL;
	if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size <= DATABASE_MAX)
		text = malloc((size_t)st.st_size + 1);
	if (text) { /* a short read of a regular file is its end */
		ssize_t n = read(fd, text, (size_t)st.st_size);
		text[n > 0 ? n : 0] = 0;
	}
	close(fd);
	return text;
}

/* Cut a line at its colons; returns how many fields it had, at most max. */
static int split(char *line, char **field, int max)
{
	int n = 0;
	while (line && n < max)
		field[n++] = strsep(&line, ":");
	return n;
}

static int number(const char *s, uint32_t *out)
{
	char *end;
	if (*s < '0' || *s > '9')
		return 0;
	errno = 0;
	unsigned long v = strtoul(s, &end, 10);
	if (*end || errno || v >= UINT32_MAX)
		return 0;
	*out = (uint32_t)v;
	return 1;
}

static int known_user(struct identity *who, const char *wanted)
{
	uint32_t uid;
	int by_number = number(wanted, &uid), found = 0;
	char *save = NULL, *text = read_database("/etc/passwd");
	for (char *line = text ? strtok_r(text, "\n", &save) : NULL; line && !found; line = strtok_r(NULL, "\n", &save)) {
		char *f[7];
		uint32_t u, g;
		if (split(line, f, 7) < 6 || !number(f[2], &u) || !number(f[3], &g))
			continue;
		if (by_number ? u != uid : strcmp(f[0], wanted))
			continue;
		who->uid = u;
		who->gid = g;
		strncpy(who->name, f[0], sizeof who->name - 1);
		strncpy(who->home, f[5], sizeof who->home - 1);
		found = 1;
	}
	free(text);
	if (found || !by_number)
		return found;
	who->uid = who->gid = uid;
	strncpy(who->name, wanted, sizeof who->name - 1);
	strcpy(who->home, "/");
	return 1;
}

/* One pass: the wanted group's number, or the groups that list this user. */
static int known_groups(struct identity *who, const char *wanted)
{
	uint32_t gid;
	int found = 0;
	if (wanted && number(wanted, &gid)) {
		who->gid = gid;
		return 1;
	}
	char *save = NULL, *text = read_database("/etc/group");
	for (char *line = text ? strtok_r(text, "\n", &save) : NULL; line; line = strtok_r(NULL, "\n", &save)) {
		char *f[4], *member, *rest = NULL;
		if (split(line, f, 4) < 4 || !number(f[2], &gid))
			continue;
		if (wanted && strcmp(f[0], wanted) == 0)
			who->gid = gid, found = 1;
		for (member = wanted ? NULL : strtok_r(f[3], ",", &rest); member; member = strtok_r(NULL, ",", &rest))
			if (strcmp(member, who->name) == 0 && who->ngroups < GROUPS_MAX)
				who->groups[who->ngroups++] = gid;
	}
	free(text);
	return found;
}

/* Resolve "name", "uid", "name:group" or "uid:gid"; 0, or an errno. */
int identify(struct identity *who, const char *user)
{
	char wanted[256];
	memset(who, 0, sizeof *who);
	if (strlen(user) >= sizeof wanted)
		return ENAMETOOLONG;
	strcpy(wanted, user);
	char *group = strchr(wanted, ':');
	if (group)
		*group++ = 0;
	if (!known_user(who, wanted))
		return ENOENT;
	if (group)
		return known_groups(who, group) ? 0 : ENOENT;
	who->groups[who->ngroups++] = who->gid;
	known_groups(who, NULL);
	return 0;
}
