/*
 * Holds a mount for the host: a program of the file tools, PID 1's child, that
 * stays.  The sandbox's own kernel asks over /dev/fuse; we pass its questions to
 * whoever is connected to our address (the host, by way of PID 1) and the answers
 * back.  What was asked and not answered is asked again of the next that connects,
 * so that neither a restart of the host's server nor a copy of the sandbox loses
 * anything.  The host keeps what it must not forget here too (see NOTE), because
 * this memory goes along into every copy.
 *
 * To the host: packets as the kernel writes them (struct fuse_in_header first), and
 * with opcode 0 notes: nodeid is a note's key, what follows its text; key 0 ends
 * them.  After a PING all that was asked before it comes first, then one with
 * opcode 0 and unique 1.
 * From the host: answers (struct fuse_out_header first), and with unique 0 orders:
 * error is NOTE (a key, a text), DROP (a key) or PING.
 */
#include "tar.h"

#include <poll.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

#define PACKET_MAX ((1u << 20) + 4096)
#define ASKED_MAX 64
#define NOTES_MAX (16u << 20)
#define BUCKETS 4096
#define WAIT_MS 30000

enum { FORGET = 2, INTERRUPT = 36, BATCH_FORGET = 42 };
enum order { NOTE = 1, DROP = 2, PING = 3 };

struct in_header {
	uint32_t len, opcode;
	uint64_t unique, nodeid;
	uint32_t uid, gid, pid, padding;
};

struct out_header {
	uint32_t len;
	int32_t error;
	uint64_t unique;
};

struct asked {
	struct asked *next;
	uint64_t unique;
	size_t len, sent;
	uint8_t packet[];
};

struct note {
	struct note *next;
	uint64_t key;
	uint32_t len;
	uint8_t text[];
};

static struct note *notes[BUCKETS];
static size_t noted;
static struct asked *asked, **asked_end = &asked;
static unsigned nasked;
static int device = -1, peer = -1, pinged;
static uint8_t packet[PACKET_MAX];
static struct {
	uint8_t *bytes;
	size_t len, sent;
} first; /* what a new peer hears before anything else; or the answer to a ping */
static struct {
	uint8_t bytes[PACKET_MAX];
	size_t have;
} heard;

static struct note **find_note(uint64_t key)
{
	struct note **at = &notes[(key ^ key >> 32) % BUCKETS];
	while (*at && (*at)->key != key)
		at = &(*at)->next;
	return at;
}

static void drop_note(uint64_t key)
{
	struct note **at = find_note(key), *gone = *at;
	if (!gone)
		return;
	noted -= gone->len;
	*at = gone->next;
	free(gone);
}

static void keep_note(uint64_t key, const uint8_t *text, uint32_t len)
{
	struct note *made;
	drop_note(key);
	if (noted + len > NOTES_MAX || !(made = malloc(sizeof *made + len)))
		return;
	*made = (struct note){.key = key, .len = len};
	memcpy(made->text, text, len);
	*find_note(key) = made;
	noted += len;
}

static void add_first(uint64_t unique, uint64_t key, const uint8_t *text, uint32_t len)
{
	struct in_header head = {.len = sizeof head + len, .unique = unique, .nodeid = key};
	first.bytes = must(realloc(first.bytes, first.len + head.len));
	memcpy(first.bytes + first.len, &head, sizeof head);
	if (len)
		memcpy(first.bytes + first.len + sizeof head, text, len);
	first.len += head.len;
}

static void forget_first(void)
{
	free(first.bytes);
	memset(&first, 0, sizeof first);
}

static void hang_up(void)
{
	if (peer >= 0)
		close(peer);
	peer = -1;
	pinged = 0;
	heard.have = 0;
	forget_first();
}

/* Another peer takes the place of the one before. */
static void meet(int fd)
{
	hang_up();
	peer = fd;
	for (int i = 0; i < BUCKETS; i++)
		for (struct note *n = notes[i]; n; n = n->next)
			add_first(0, n->key, n->text, n->len);
	add_first(0, 0, NULL, 0);
	for (struct asked *a = asked; a; a = a->next)
		a->sent = 0;
}

/* Take one question of the kernel's; 0 when there is none. */
static int take_question(void)
{
	struct in_header head;
	struct asked *a;
	ssize_t n = read(device, packet, sizeof packet);
	if (n < (ssize_t)sizeof head) {
		if (n < 0 && (errno == EAGAIN || errno == EINTR || errno == ENOENT))
			return 0;
		exit(0); /* unmounted */
	}
	memcpy(&head, packet, sizeof head);
	if (head.opcode == FORGET || head.opcode == BATCH_FORGET || head.opcode == INTERRUPT)
		return 1;
	a = must(malloc(sizeof *a + (size_t)n));
	*a = (struct asked){.unique = head.unique, .len = (size_t)n};
	memcpy(a->packet, packet, (size_t)n);
	*asked_end = a;
	asked_end = &a->next;
	nasked++;
	return 1;
}

static void answer(const struct out_header *head, const uint8_t *whole)
{
	for (struct asked **at = &asked; *at; at = &(*at)->next)
		if ((*at)->unique == head->unique) {
			struct asked *gone = *at;
			if (gone->sent != gone->len) { /* nobody answers what was not asked whole */
				hang_up();
				return;
			}
			*at = gone->next;
			if (!gone->next)
				asked_end = at;
			free(gone);
			nasked--;
			(void)!write(device, whole, head->len); /* whoever asked may have gone */
			return;
		}
}

static void obey(const struct out_header *head, const uint8_t *whole)
{
	uint64_t key;
	if (head->unique) {
		answer(head, whole);
		return;
	}
	if (head->error == PING) {
		pinged = 1;
		return;
	}
	if (head->len < sizeof *head + sizeof key)
		return;
	memcpy(&key, whole + sizeof *head, sizeof key);
	if (head->error == NOTE && key)
		keep_note(key, whole + sizeof *head + sizeof key, head->len - (uint32_t)(sizeof *head + sizeof key));
	else if (head->error == DROP)
		drop_note(key);
}

static void hear(void)
{
	size_t at = 0;
	ssize_t n = read(peer, heard.bytes + heard.have, sizeof heard.bytes - heard.have);
	if (n <= 0) {
		if (n == 0 || (errno != EAGAIN && errno != EINTR))
			hang_up();
		return;
	}
	heard.have += (size_t)n;
	while (heard.have - at >= sizeof(struct out_header)) {
		struct out_header head;
		memcpy(&head, heard.bytes + at, sizeof head);
		if (head.len < sizeof head || head.len > sizeof heard.bytes) {
			hang_up();
			return;
		}
		if (heard.have - at < head.len)
			break;
		obey(&head, heard.bytes + at);
		if (peer < 0)
			return;
		at += head.len;
	}
	memmove(heard.bytes, heard.bytes + at, heard.have - at);
	heard.have -= at;
}

/* The next bytes that the peer is to hear, 0 if there are none. */
static size_t next_bytes(const uint8_t **bytes, size_t **sent)
{
	for (;;) {
		if (first.sent < first.len) {
			*bytes = first.bytes + first.sent;
			*sent = &first.sent;
			return first.len - first.sent;
		}
		for (struct asked *a = asked; a; a = a->next)
			if (a->sent < a->len) {
				*bytes = a->packet + a->sent;
				*sent = &a->sent;
				return a->len - a->sent;
			}
		if (!pinged || nasked == ASKED_MAX)
			return 0;
		if (take_question())
			continue;
		pinged = 0;
		forget_first();
		add_first(1, 0, NULL, 0);
	}
}

static void speak(void)
{
	const uint8_t *bytes;
	size_t *sent, left;
	while (peer >= 0 && (left = next_bytes(&bytes, &sent))) {
		ssize_t n = send(peer, bytes, left, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n < 0) {
			hang_up();
			return;
		}
		*sent += (size_t)n;
	}
}

/* The device, from the program that mounted it (mount.c). */
static int receive_device(int listener)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	char byte;
	struct iovec iov = {&byte, 1};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	struct pollfd waiting = {.fd = listener, .events = POLLIN};
	int fd, got = -1;
	if (poll(&waiting, 1, WAIT_MS) != 1 || (fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) < 0)
		return -1;
	if (recvmsg(fd, &message, MSG_CMSG_CLOEXEC) == 1 && CMSG_FIRSTHDR(&message) &&
	    CMSG_FIRSTHDR(&message)->cmsg_type == SCM_RIGHTS)
		memcpy(&got, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof got);
	close(fd);
	return got;
}

static void serve(int listener)
{
	if ((device = receive_device(listener)) < 0)
		exit(1);
	fcntl(device, F_SETFL, O_NONBLOCK);
	fcntl(listener, F_SETFL, O_NONBLOCK);
	for (;;) {
		const uint8_t *bytes;
		size_t *sent;
		struct pollfd fds[3] = {{.fd = listener, .events = POLLIN},
					{.fd = nasked < ASKED_MAX ? device : -1, .events = POLLIN},
					{.fd = peer, .events = POLLIN}};
		if (peer >= 0 && next_bytes(&bytes, &sent))
			fds[2].events |= POLLOUT;
		if (poll(fds, 3, -1) < 0)
			continue;
		if (fds[1].revents & (POLLERR | POLLHUP))
			exit(0); /* unmounted */
		while (fds[1].revents && nasked < ASKED_MAX && take_question())
			;
		if (fds[2].revents & (POLLIN | POLLHUP | POLLERR))
			hear();
		if (fds[0].revents) {
			int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
			if (fd >= 0)
				meet(fd);
		}
		speak();
	}
}

/* Listen at an address, then stay in the background.  argument: not used. */
int hold(char *name, const char *argument)
{
	struct sockaddr_un at = {.sun_family = AF_UNIX};
	size_t n = strlen(name);
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	(void)argument;
	if (n + 1 > sizeof at.sun_path)
		errno = ENAMETOOLONG, die(name);
	memcpy(at.sun_path + 1, name, n); /* an abstract one: a NUL in front */
	if (listener < 0 || bind(listener, (struct sockaddr *)&at, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + n)) < 0 ||
	    listen(listener, 8) < 0)
		die(name);
	switch (fork()) {
	case -1: die(name);
	case 0: break;
	default: return 0;
	}
	setsid();
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	for (int fd = 0; fd < 3; fd++)
		dup2(null, fd);
	(void)!chdir("/");
	serve(listener);
	return 0;
}
