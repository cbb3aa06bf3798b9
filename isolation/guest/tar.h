/* What the programs for layers and for file operations share. */
#ifndef ISOBOX_TAR_H
#define ISOBOX_TAR_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
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

/* A member as its headers describe it; of a file, its contents follow. */
struct entry {
	char path[PATH_MAX], link[PATH_MAX], type;
	uint64_t size, uid, gid, mode, mtime;
};

/* Tells why (errno) and ends the program: each program has its own way. */
void die(const char *what) __attribute__((noreturn));
void *must(void *allocated);

void put_entry(const char *name, const char *link, char type, uint64_t size, const struct stat *st);
void put_file(int fd, const char *path, const struct stat *st);
void put_end(void);

/* The next member: 0 at the end.  What was read before has to be applied or skipped. */
int next_entry(struct entry *e);
int is_strange(const char *path);

/* Names relative to an open folder; none of them is followed where it is a link. */
int open_folder(int at, const char *name, int reading);
int empty_folder(int fd, dev_t dev, int depth);
int remove_tree(int at, const char *name);
void clear(int at, const char *name);
void clear_entry(int root, char *path);
void apply_entry(int root, struct entry *e, int owners);

extern int place_is_roots;
int open_place(const char *path, int create);

#endif
