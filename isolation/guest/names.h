/* The sandbox's own name in its host table. */
#ifndef ISOBOX_NAMES_H
#define ISOBOX_NAMES_H

/* What images hold as /etc/hosts: fs/rootfs.py has the same text, a test compares the two. */
#define HOSTS "127.0.0.1 localhost\n::1 localhost6 ip6-localhost ip6-loopback\n"
#define HOSTS_PATH "/etc/hosts"

/* Have the sandbox's own name, and no earlier one, lead to the loopback. */
void write_own_name(const char *name);

/* Whether the open file is the image's host table, apart from the line of `write_own_name`. */
int is_plain_hosts(int fd);

#endif
