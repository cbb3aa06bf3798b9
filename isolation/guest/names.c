/*
 * The sandbox's own name in its host table: "127.0.0.1 NAME # isobox".
 *
 * Names change, with each fork and restore, so the line is written anew then.
 * The file is the guest's: it is opened without blocking, read only if it is
 * regular and of reasonable size, and left alone otherwise.  The line goes to
 * the loopback's usual address, for what listens on the sandbox's name is then
 * found where its ports are reached from outside.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "names.h"

#define TABLE_MAX (1 << 20)
#define MARK " # isobox\n"

/* The table without our line; NULL if it is not to be read.  The caller frees it. */
static char *read_table(int fd)
{
	struct stat st;
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size > TABLE_MAX)
		return NULL;
	char *text = malloc((size_t)st.st_size + 1);
	ssize_t n = text ? pread(fd, text, (size_t)st.st_size, 0) : -1;
	if (n < 0) {
		free(text);
		return NULL;
	}
	text[n] = 0;
	char *to = text;
	for (char *line = text, *end; *line; line = end) {
		char *newline = strchr(line, '\n');
		end = newline ? newline + 1 : line + strlen(line);
		size_t size = (size_t)(end - line), mark = strlen(MARK);
		if (size >= mark && memcmp(end - mark, MARK, mark) == 0)
			continue;
		memmove(to, line, size);
		to += size;
	}
	*to = 0;
	return text;
}

void write_own_name(const char *name)
{
	int fd = open(HOSTS_PATH, O_RDWR | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC);
	char *table = fd < 0 ? NULL : read_table(fd);
	char *text = NULL;
	if (table) {
		size_t size = strlen(table);
		const char *gap = size && table[size - 1] != '\n' ? "\n" : "";
		int n = asprintf(&text, "%s%s127.0.0.1 %s" MARK, table, gap, name);
		/* No shorter at any moment than it will be: a program that reads it meanwhile sees whole lines. */
		if (n > 0 && pwrite(fd, text, (size_t)n, 0) == n)
			(void)!ftruncate(fd, n);
	}
	if (fd >= 0)
		close(fd);
	free(table);
	free(text);
}

int is_plain_hosts(int fd)
{
	struct stat st;
	char *table = read_table(fd);
	int plain = table && strcmp(table, HOSTS) == 0 && fstat(fd, &st) == 0 && st.st_uid == 0 && st.st_gid == 0 &&
		    (st.st_mode & 07777) == 0644;
	free(table);
	return plain;
}
