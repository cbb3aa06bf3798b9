/*
 * PID 1 of every sandbox: starts processes, relays their streams, reports how
 * they ended.  One thread, one epoll loop, no allocation that a peer can grow.
 *
 * Fd 0 brings frames from the host, fd 1 takes ours (see wire.h).  Both are
 * host descriptors: the only ones that a checkpoint carries into a copy.
 *
 * Nothing is queued for sending: what there is to say follows from the state of
 * each exec (the `tell` bits, the bytes between `sent` and `produced`), so a
 * host that comes back after any interruption says HELLO, then how far it got,
 * and hears the rest once and in order.
 */
#include "init.h"
#include "names.h"

#define CAP_LAST 40
#define PAGE 4096u
enum tell { TELL_STARTED = 1, TELL_STDIN = 2, TELL_EXIT = 4 };
enum kind { FROM_HOST, TO_HOST, CHILDREN, INPUT, OUTPUT };

struct exec;

struct source { /* what an epoll event points to */
	enum kind kind;
	int watched;
	struct exec *exec;
	struct stream *stream;
};

struct stream {
	struct source source;
	int fd; /* -1: closed */
	uint8_t id;
	uint8_t held; /* between HELLO and RESUME */
	uint8_t discard;
	uint8_t *ring;
	uint64_t base, sent, produced, final; /* base <= sent <= produced <= final */
};

struct exec {
	struct exec *next_dead;
	uint32_t id;
	pid_t pid;
	int stage, error; /* of a failed start */
	uint8_t tell, ended, forgotten, dead, terminal;
	uint8_t dialling, socket; /* a connection, being made or made */
	struct stream out[2];
	struct source in_source;
	int in;
	uint8_t in_eof, in_closed;
	uint8_t *in_buf;
	size_t in_len;
	uint64_t in_taken; /* by the process; in_taken + in_len were received */
	struct exit_report report;
};

static struct exec *execs[EXECS_MAX];
static unsigned nexecs, turn;
static struct exec *dead; /* freed when no event of this round can point to them */
static int poller, children;
static uint8_t *spare[SPARE_RINGS];
static unsigned nspare;

static struct {
	uint8_t buf[256 << 10]; /* whole reads of many frames: the sentry charges by the call */
	size_t have;
	int lost; /* out of step: only a HELLO at the head of a read helps */
} rx;

static struct {
	uint32_t exec;
	size_t len, room;
	char *buf;
} staged;

static struct {
	struct source source;
	uint8_t head[4096]; /* small frames, and the header of the data that follows */
	struct iovec iov[2];
	struct exec *pinned; /* iov[1] points into its ring */
	uint8_t nonce[NONCE_SIZE];
	uint8_t hello, ready, pong, relieved;
	uint32_t pong_aux;
	struct frame relief;
} tx;

static struct source host_source = {.kind = FROM_HOST}, children_source = {.kind = CHILDREN};

static void watch(struct source *s, int fd, uint32_t events, int wanted)
{
	struct epoll_event ev = {.events = events, .data.ptr = s};
	if (s->watched == wanted || fd < 0)
		return;
	if (epoll_ctl(poller, wanted ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, fd, &ev) == 0)
		s->watched = wanted;
}

static uint64_t room(const struct stream *s)
{
	uint64_t window = STREAM_WINDOW - (s->produced - s->base), left = s->final - s->produced;
	return window < left ? window : left;
}

static void watch_output(struct stream *s)
{
	watch(&s->source, s->fd, EPOLLIN, s->discard || room(s) > 0);
}

static void close_source(struct source *s, int *fd)
{
	if (*fd < 0)
		return;
	if (s->exec->socket && s->kind == INPUT)
		shutdown(*fd, SHUT_WR);
	watch(s, *fd, 0, 0);
	s->watched = 0;
	close(*fd);
	*fd = -1;
}

static struct exec *find(uint32_t id)
{
	for (unsigned i = 0; i < nexecs; i++)
		if (execs[i]->id == id && !execs[i]->forgotten)
			return execs[i];
	return NULL;
}

/* A few rings are kept for the next exec: mapping and unmapping memory is what costs most
 * under gVisor (0.2-0.5 ms a call). */
static uint8_t *take_ring(void)
{
	if (nspare)
		return spare[--nspare];
	void *ring = mmap(NULL, STREAM_WINDOW, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return ring == MAP_FAILED ? NULL : ring;
}

static void drop_ring(struct stream *s)
{
	if (s->ring && nspare < SPARE_RINGS)
		spare[nspare++] = s->ring;
	else if (s->ring)
		munmap(s->ring, STREAM_WINDOW);
	s->ring = NULL;
}

/* Free a forgotten exec once no background process holds its pipes. */
static void settle(struct exec *e)
{
	if (!e->forgotten || e->dead || tx.pinned == e)
		return;
	drop_ring(&e->out[0]);
	drop_ring(&e->out[1]);
	if (e->out[0].fd >= 0 || e->out[1].fd >= 0)
		return;
	for (unsigned i = 0; i < nexecs; i++)
		if (execs[i] == e) {
			execs[i] = execs[--nexecs];
			break;
		}
	e->dead = 1;
	e->next_dead = dead;
	dead = e;
}

static void bury(void)
{
	while (dead) {
		struct exec *e = dead;
		dead = e->next_dead;
		free(e->in_buf);
		free(e);
	}
}

static void close_input(struct exec *e)
{
	close_source(&e->in_source, &e->in);
	e->in_taken += e->in_len; /* nobody will take it: don't make the host wait */
	e->in_len = 0;
	e->in_closed = 1;
	e->tell |= TELL_STDIN;
}

static void feed_input(struct exec *e)
{
	size_t done = 0;
	while (e->in >= 0 && done < e->in_len) {
		ssize_t n = write(e->in, e->in_buf + done, e->in_len - done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno != EAGAIN) {
			close_input(e);
			return;
		}
		if (n <= 0)
			break;
		done += (size_t)n;
	}
	if (done) {
		memmove(e->in_buf, e->in_buf + done, e->in_len - done);
		e->in_len -= done;
		e->in_taken += done;
		e->tell |= TELL_STDIN;
	}
	if (e->in_eof && !e->in_len && !e->in_closed) {
		if (e->terminal) /* a terminal has no end: type Ctrl-D */
			e->in_closed = write(e->in, "\x04", 1) == 1 || errno != EAGAIN;
		else
			close_input(e);
	}
	watch(&e->in_source, e->in, EPOLLOUT, e->in_len > 0 || (e->in_eof && !e->in_closed));
}

static void exec_ended(struct exec *e, int status, const struct rusage *used);

static void read_output(struct stream *s)
{
	static uint8_t waste[1 << 16];
	size_t at = s->produced & (STREAM_WINDOW - 1), whole = STREAM_WINDOW - at;
	size_t want = room(s) < whole ? room(s) : whole;
	ssize_t n;
	if (s->fd < 0 || (!s->discard && !want))
		return;
	do
		n = s->discard ? read(s->fd, waste, sizeof waste) : read(s->fd, s->ring + at, want);
	while (n < 0 && errno == EINTR);
	if (n == 0 || (n < 0 && errno != EAGAIN)) { /* EIO: the terminal's other side is closed */
		close_source(&s->source, &s->fd);
		if (s->source.exec->socket && !s->source.exec->ended) /* its other side has closed */
			exec_ended(s->source.exec, 0, &(struct rusage){0});
		settle(s->source.exec);
		return;
	}
	if (n > 0 && !s->discard)
		s->produced += (size_t)n;
	/* What background processes print after their exec has ended goes nowhere. */
	if (s->produced == s->final)
		s->discard = 1;
	watch_output(s);
}

/* The process is gone: what it had written by now is its output, no more. */
static void exec_ended(struct exec *e, int status, const struct rusage *used)
{
	struct exit_report *r = &e->report;
	r->signalled = WIFSIGNALED(status);
	r->code = (uint32_t)(r->signalled ? WTERMSIG(status) : WEXITSTATUS(status));
	r->cpu_us = (uint64_t)(used->ru_utime.tv_sec + used->ru_stime.tv_sec) * 1000000u +
		    (uint64_t)(used->ru_utime.tv_usec + used->ru_stime.tv_usec);
	r->max_rss_kib = (uint64_t)used->ru_maxrss;
	for (int i = 0; i < 2; i++) {
		struct stream *s = &e->out[i];
		int waiting = 0;
		uint64_t before;
		if (e->terminal) { /* terminals don't tell how much waits: take what there is */
			do {
				before = s->produced;
				read_output(s);
			} while (s->produced != before);
		} else if (s->fd >= 0 && ioctl(s->fd, FIONREAD, &waiting) < 0) {
			waiting = 0;
		}
		s->final = r->final[i] = s->produced + (uint64_t)waiting;
		s->discard = s->fd >= 0 && !waiting;
		watch_output(s);
	}
	close_input(e);
	e->ended = 1;
	e->tell |= TELL_EXIT;
}

static void reap(void)
{
	struct rusage used;
	int status;
	pid_t pid;
	while ((pid = wait4(-1, &status, WNOHANG, &used)) > 0)
		for (unsigned i = 0; i < nexecs; i++)
			if (execs[i]->pid == pid && !execs[i]->ended) {
				exec_ended(execs[i], status, &used);
				break;
			}
}

/* Take one NUL-terminated string off the request. */
static char *take(char **at, char *end)
{
	char *s = *at, *nul = s < end ? memchr(s, 0, (size_t)(end - s)) : NULL;
	if (nul)
		*at = nul + 1;
	return nul ? s : NULL;
}

static char **take_list(char **at, char *end, uint32_t n)
{
	char **list = n > START_MAX ? NULL : calloc((size_t)n + 1, sizeof *list);
	for (uint32_t i = 0; list && i < n; i++)
		if (!(list[i] = take(at, end))) {
			free(list);
			return NULL;
		}
	return list;
}

static int parse_request(struct request *req)
{
	char *at = staged.buf, *end = at + staged.len;
	if (staged.len < sizeof req->head)
		return -1;
	memcpy(&req->head, at, sizeof req->head);
	at += sizeof req->head;
	if (!(req->user = take(&at, end)) || !(req->cwd = take(&at, end)) || !req->head.argc ||
	    !(req->argv = take_list(&at, end, req->head.argc)))
		return -1;
	req->env = take_list(&at, end, req->head.envc);
	return req->env ? 0 : -1;
}

static int open_stream(struct exec *e, int i, int fd)
{
	struct stream *s = &e->out[i];
	s->fd = fd;
	s->id = (uint8_t)(i + 1);
	s->final = UINT64_MAX;
	s->source = (struct source){.kind = OUTPUT, .exec = e, .stream = s};
	if (fd < 0)
		return 0;
	if (!(s->ring = take_ring()))
		return -1;
	fcntl(fd, F_SETFL, O_NONBLOCK);
	watch_output(s);
	return 0;
}

/* The dialled port has answered: e->in is connected, or never will be. */
static void dialled(struct exec *e, int error)
{
	socklen_t n = sizeof error;
	e->dialling = 0;
	if (!error && getsockopt(e->in, SOL_SOCKET, SO_ERROR, &error, &n) == 0 && !error &&
	    open_stream(e, 0, fcntl(e->in, F_DUPFD_CLOEXEC, 3)) < 0)
		error = ENOMEM;
	e->stage = error ? STAGE_SYSTEM : 0;
	e->error = error;
	e->tell |= TELL_STARTED;
	if (error)
		close_input(e);
	watch(&e->in_source, e->in, EPOLLOUT, e->in_len > 0);
}

/* A port of the loopback, or "@NAME": an abstract address. */
static void dial(struct exec *e, const char *where)
{
	union {
		struct sockaddr any;
		struct sockaddr_in port;
		struct sockaddr_un name;
	} to = {0};
	socklen_t size = sizeof to.port;
	size_t n = strlen(where);
	if (*where == '@' && n <= sizeof to.name.sun_path) {
		to.name.sun_family = AF_UNIX;
		memcpy(to.name.sun_path + 1, where + 1, n - 1);
		size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n);
	} else {
		to.port.sin_family = AF_INET;
		to.port.sin_port = htons((uint16_t)atoi(where));
		to.port.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	}
	e->in = socket(to.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	e->socket = e->dialling = 1;
	if (e->in < 0 || (connect(e->in, &to.any, size) < 0 && errno != EINPROGRESS))
		dialled(e, errno);
	else
		watch(&e->in_source, e->in, EPOLLOUT, 1);
}

static void start_process(struct exec *e, const struct frame *f)
{
	struct request req = {.flags = f->flags, .rows = (uint16_t)(f->aux >> 16), .cols = (uint16_t)f->aux};
	struct spawned got = {.pid = -1, .in = -1, .out = -1, .err = -1, .stage = STAGE_REQUEST, .error = EINVAL};
	int parsed = parse_request(&req) == 0;
	e->pid = -1;
	if (parsed && f->flags & START_DIAL)
		dial(e, req.argv[0]);
	else if (parsed)
		spawn(&req, &got);
	free(req.argv);
	free(req.env);
	if (e->socket)
		return;
	e->terminal = (req.flags & START_PTY) != 0;
	e->stage = got.stage;
	e->error = got.error;
	e->pid = got.stage ? -1 : got.pid;
	e->in = got.in;
	if (e->in >= 0)
		fcntl(e->in, F_SETFL, O_NONBLOCK);
	if (open_stream(e, 0, got.out) < 0 || open_stream(e, 1, got.err) < 0)
		kill(-got.pid, SIGKILL); /* no memory for its output; its end is reported as usual */
	if (e->in < 0)
		e->in_closed = 1;
	e->tell |= TELL_STARTED;
}

static void start(const struct frame *f)
{
	struct exec *e;
	if (find(f->exec)) /* said twice: once is enough */
		return;
	if (nexecs == EXECS_MAX || !(e = calloc(1, sizeof *e)))
		return; /* the host counts execs and knows better; it hears nothing and gives up */
	e->id = f->exec;
	e->in = e->out[0].fd = e->out[1].fd = -1;
	e->in_source = (struct source){.kind = INPUT, .exec = e};
	execs[nexecs++] = e;
	start_process(e, f);
}

static void stage(const struct frame *f, const uint8_t *payload)
{
	if (!f->len)
		return;
	if (staged.exec != f->exec)
		staged.len = 0;
	staged.exec = f->exec;
	if (staged.len + f->len > staged.room && staged.room < START_MAX) {
		size_t room = staged.room ? START_MAX : 4 * FRAME_FROM_HOST; /* most are small */
		char *larger = realloc(staged.buf, room);
		staged.buf = larger ? larger : staged.buf;
		staged.room = larger ? room : staged.room;
	}
	if (staged.len + f->len > staged.room) {
		staged.len = START_MAX + 1; /* too long: START will find it so and fail it */
		return;
	}
	memcpy(staged.buf + staged.len, payload, f->len);
	staged.len += f->len;
}

static void staged_start(const struct frame *f, const uint8_t *payload)
{
	stage(f, payload);
	if (staged.len > START_MAX)
		staged.len = 0;
	start(f);
	staged.len = 0;
}

static void take_input(struct exec *e, const struct frame *f, const uint8_t *payload)
{
	uint64_t received = e->in_taken + e->in_len;
	size_t skip, n;
	if (f->offset > received || f->offset + f->len <= received)
		return; /* a hole, or nothing new */
	skip = (size_t)(received - f->offset);
	n = f->len - skip;
	if (e->in_closed || e->in_eof) {
		e->in_taken += n;
		e->tell |= TELL_STDIN;
		return;
	}
	if (!e->in_buf)
		e->in_buf = malloc(STDIN_WINDOW);
	if (!e->in_buf || n > STDIN_WINDOW - e->in_len)
		return; /* beyond its credit */
	memcpy(e->in_buf + e->in_len, payload + skip, n);
	e->in_len += n;
	watch(&e->in_source, e->in, EPOLLOUT, 1); /* written when all frames at hand are read */
}

static void end_input(struct exec *e, const struct frame *f)
{
	if (f->offset != e->in_taken + e->in_len)
		return;
	e->in_eof = 1;
	feed_input(e);
}

/* To every process of a terminal's session: which of its groups stands in the foreground
 * can't be asked from outside it (TIOCGPGRP on the master: ENOTTY before 2024-10). */
static void signal_session(pid_t session, int number)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	while (proc && (entry = readdir(proc))) {
		pid_t pid = atoi(entry->d_name);
		if (pid > 1 && getsid(pid) == session)
			kill(pid, number);
	}
	if (proc)
		closedir(proc);
}

static void send_signal(struct exec *e, const struct frame *f)
{
	if (e->socket && !e->ended && !e->stage) { /* whatever the signal: it is over */
		close_source(&e->out[0].source, &e->out[0].fd);
		exec_ended(e, (int)f->aux & 0x7f, &(struct rusage){0});
	}
	if (e->ended || e->pid <= 0 || f->aux < 1 || f->aux > 64)
		return;
	if (f->flags && e->terminal) /* under job control each command is a group of its own */
		signal_session(e->pid, (int)f->aux);
	else
		kill(f->flags ? -e->pid : e->pid, (int)f->aux);
}

static void resize(struct exec *e, const struct frame *f)
{
	struct winsize size = {.ws_row = (uint16_t)(f->aux >> 16), .ws_col = (uint16_t)f->aux};
	/* gVisor sends no SIGWINCH by itself (before 2026-06); by default it is ignored. */
	if (e->terminal && e->in >= 0 && !e->ended && ioctl(e->in, TIOCSWINSZ, &size) == 0)
		signal_session(e->pid, SIGWINCH);
}

static void acknowledge(struct exec *e, const struct frame *f)
{
	struct stream *s = f->stream == 1 || f->stream == 2 ? &e->out[f->stream - 1] : NULL;
	if (!s)
		return;
	if (f->type == RESUME && f->offset >= s->base && f->offset <= s->produced) {
		s->sent = f->offset;
		s->held = 0;
	}
	if (f->offset > s->base && f->offset <= s->sent)
		s->base = f->offset;
	watch_output(s);
}

static struct exec *owner_of(pid_t pid)
{
	for (int up = 0; pid > 1 && up < PARENTS_MAX; up++, pid = parent_of(pid))
		for (unsigned i = 0; i < nexecs; i++)
			if (execs[i]->pid == pid && !execs[i]->ended)
				return execs[i];
	return NULL;
}

static void relieve(const struct frame *f)
{
	uint64_t resident = 0, used = root_used();
	pid_t pid = f->offset && used >= f->offset ? 0 : find_largest((uint64_t)f->aux << 20, &resident);
	struct exec *e = pid ? owner_of(pid) : NULL;
	if (pid && kill(pid, SIGKILL) < 0) /* it ended by itself */
		e = NULL;
	tx.relieved = 1;
	tx.relief = (struct frame){.type = RELIEVED, .exec = e ? e->id : 0, .aux = (uint32_t)pid};
	tx.relief.offset = pid ? resident : used;
}

static void hello(const uint8_t *payload)
{
	memcpy(tx.nonce, payload + 16, NONCE_SIZE);
	tx.iov[0].iov_len = tx.iov[1].iov_len = 0;
	tx.pinned = NULL;
	tx.hello = tx.ready = 1;
	tx.pong = tx.relieved = 0;
	staged.len = 0;
	for (unsigned i = nexecs; i-- > 0;) {
		struct exec *e = execs[i];
		if (e->forgotten) {
			settle(e);
			continue;
		}
		e->tell = (e->dialling ? 0 : TELL_STARTED) | TELL_STDIN | (e->ended ? TELL_EXIT : 0);
		e->out[0].held = e->out[1].held = 1;
	}
}

static void forget(struct exec *e)
{
	if (!e->ended && !e->stage)
		return; /* what runs can't be forgotten */
	e->forgotten = 1;
	for (int i = 0; i < 2; i++) {
		e->out[i].discard = 1;
		watch_output(&e->out[i]);
	}
	settle(e);
}

static void obey(const struct frame *f, const uint8_t *payload)
{
	struct exec *e = find(f->exec);
	switch (f->type) {
	case HELLO: hello(payload); return;
	case PING: tx.pong = 1, tx.pong_aux = f->aux; return;
	case START_PART: stage(f, payload); return;
	case START: staged_start(f, payload); return;
	case RELIEVE: relieve(f); return;
	}
	if (!e)
		return;
	switch (f->type) {
	case STDIN: take_input(e, f, payload); return;
	case STDIN_EOF: end_input(e, f); return;
	case ACK: case RESUME: acknowledge(e, f); return;
	case SIGNAL: send_signal(e, f); return;
	case RESIZE: resize(e, f); return;
	case FORGET: forget(e); return;
	}
}

static int is_hello(const uint8_t *at, size_t n)
{
	struct frame f;
	if (n < sizeof f + 16 + NONCE_SIZE)
		return 0;
	memcpy(&f, at, sizeof f);
	return f.type == HELLO && f.len == 16 + NONCE_SIZE && memcmp(at + sizeof f, HELLO_MAGIC, 16) == 0;
}

/* One read; 0 when the host is gone for good. */
static int hear(void)
{
	size_t at = 0;
	ssize_t n = read(0, rx.buf + rx.have, sizeof rx.buf - rx.have);
	if (n <= 0)
		return n < 0 && (errno == EAGAIN || errno == EINTR);
	/* A new link starts with a HELLO in an empty pipe: at the head of a read, perhaps
	 * behind half a frame that a checkpoint cut. */
	if ((rx.have || rx.lost) && is_hello(rx.buf + rx.have, (size_t)n)) {
		memmove(rx.buf, rx.buf + rx.have, (size_t)n);
		rx.have = 0;
		rx.lost = 0;
	}
	rx.have += (size_t)n;
	while (!rx.lost && rx.have - at >= sizeof(struct frame)) {
		struct frame f;
		memcpy(&f, rx.buf + at, sizeof f);
		if (f.len > FRAME_FROM_HOST - sizeof f || f.type < HELLO || f.type > RELIEVE ||
		    (f.type == HELLO && f.len != 16 + NONCE_SIZE)) {
			rx.lost = 1;
			break;
		}
		if (rx.have - at < sizeof f + f.len)
			break;
		obey(&f, rx.buf + at + sizeof f);
		at += sizeof f + f.len;
	}
	if (rx.lost)
		at = rx.have;
	memmove(rx.buf, rx.buf + at, rx.have - at);
	rx.have -= at;
	return 1;
}

static void put(const struct frame *f, const void *payload)
{
	uint8_t *at = tx.head + tx.iov[0].iov_len;
	memcpy(at, f, sizeof *f);
	if (payload)
		memcpy(at + sizeof *f, payload, f->len);
	tx.iov[0].iov_len += sizeof *f + (payload ? f->len : 0);
}

static int fits(size_t payload)
{
	/* Always leave room for the header of one data frame. */
	return tx.iov[0].iov_len + 2 * sizeof(struct frame) + payload <= sizeof tx.head;
}

static void put_news(struct exec *e)
{
	struct frame f = {.exec = e->id};
	if (e->tell & TELL_STARTED) {
		f.type = e->stage ? FAILED : STARTED;
		f.stream = (uint8_t)e->stage;
		f.aux = (uint32_t)(e->stage ? e->error : e->pid);
		put(&f, NULL);
	}
	if (e->tell & TELL_STDIN) {
		f = (struct frame){.exec = e->id, .type = STDIN_ACK, .flags = e->in_closed};
		f.offset = e->in_taken;
		f.aux = (uint32_t)e->in_len;
		put(&f, NULL);
	}
	if (e->tell & TELL_EXIT) {
		f = (struct frame){.exec = e->id, .type = EXIT, .len = sizeof e->report};
		put(&f, &e->report);
	}
	e->tell = 0;
}

/* Lay the next data frame behind the small ones; 0 when no stream has any. */
static int put_data(void)
{
	for (unsigned i = 0; i < 2 * nexecs; i++) {
		struct exec *e = execs[(turn + i / 2) % nexecs];
		struct stream *s = &e->out[i % 2];
		uint64_t n = s->produced - s->sent;
		size_t at = s->sent & (STREAM_WINDOW - 1);
		if (!n || s->held || e->forgotten)
			continue;
		if (n > FRAME_DATA_MAX)
			n = FRAME_DATA_MAX;
		if (n > STREAM_WINDOW - at)
			n = STREAM_WINDOW - at;
		struct frame f = {.len = (uint32_t)n, .type = OUT, .stream = s->id, .exec = e->id, .offset = s->sent};
		put(&f, NULL);
		tx.iov[1] = (struct iovec){.iov_base = s->ring + at, .iov_len = n};
		tx.pinned = e;
		s->sent += n;
		turn = (turn + i / 2 + (i % 2)) % nexecs; /* stderr's turn, or the next exec's */
		return 1;
	}
	return 0;
}

/* Compose the next write; 0 when there is nothing to say. */
static int compose(void)
{
	tx.iov[0].iov_base = tx.head;
	tx.iov[0].iov_len = 0;
	if (tx.hello) {
		uint8_t payload[16 + NONCE_SIZE + 4] = HELLO_MAGIC;
		uint32_t version = CHANNEL_VERSION;
		memcpy(payload + 16, tx.nonce, NONCE_SIZE);
		memcpy(payload + 16 + NONCE_SIZE, &version, sizeof version);
		put(&(struct frame){.type = HELLO_BACK, .len = sizeof payload}, payload);
		tx.hello = 0;
	}
	if (tx.relieved) { /* before the exit that it explains */
		put(&tx.relief, NULL);
		tx.relieved = 0;
	}
	for (unsigned i = 0; i < nexecs; i++)
		if (execs[i]->tell && !execs[i]->forgotten) {
			if (!fits(2 * sizeof(struct frame) + sizeof(struct exit_report)))
				return 1;
			put_news(execs[i]);
		}
	if (tx.ready && fits(0)) {
		put(&(struct frame){.type = READY}, NULL);
		tx.ready = 0;
	}
	if (tx.pong && fits(0)) {
		put(&(struct frame){.type = PONG, .aux = tx.pong_aux}, NULL);
		tx.pong = 0;
	}
	if (nexecs && !tx.ready)
		put_data();
	return tx.iov[0].iov_len > 0;
}

static void written(size_t n)
{
	for (int i = 0; i < 2; i++) {
		size_t part = n < tx.iov[i].iov_len ? n : tx.iov[i].iov_len;
		tx.iov[i].iov_base = (uint8_t *)tx.iov[i].iov_base + part;
		tx.iov[i].iov_len -= part;
		n -= part;
	}
	if (!tx.iov[1].iov_len && tx.pinned) {
		struct exec *e = tx.pinned;
		tx.pinned = NULL;
		settle(e);
	}
}

static void speak(void)
{
	for (;;) {
		if (tx.iov[0].iov_len + tx.iov[1].iov_len == 0 && !compose())
			break;
		ssize_t n = writev(1, tx.iov, 2);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN) {
			watch(&tx.source, 1, EPOLLOUT, 1);
			return;
		}
		if (n < 0)
			_exit(0); /* nobody holds the other end: the sandbox is over */
		written((size_t)n);
	}
	watch(&tx.source, 1, EPOLLOUT, 0);
}

static int handle(const struct epoll_event *ev)
{
	struct source *s = ev->data.ptr;
	struct signalfd_siginfo info; /* several ends may stand behind one; reap() asks for all */
	switch (s->kind) {
	case FROM_HOST: return hear();
	case INPUT: s->exec->dialling ? dialled(s->exec, 0) : feed_input(s->exec); break;
	case OUTPUT: read_output(s->stream); break;
	case TO_HOST: break; /* speak() follows every round */
	case CHILDREN:
		while (read(children, &info, sizeof info) == sizeof info)
			;
		reap();
	}
	return 1;
}

/* A file that programs may read, or watch: it names the sandbox, and so changes in a copy of it. */
static void tell_generation(const char *id)
{
	char line[HOST_NAME_MAX + 2];
	int n = snprintf(line, sizeof line, "%s\n", id);
	int fd = open("/.isobox/generation", O_WRONLY | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0644);
	if (fd < 0)
		return; /* root inside put something else there, or filled the disk: it lacks a notice, no more */
	if (pwrite(fd, line, (size_t)n, 0) == n)
		(void)!ftruncate(fd, n);
	close(fd);
}

/* Have pages of our own instead of the file's.  After a restore the file's are unmapped, and systrap
 * (before gVisor 03a28d158) takes an instruction that reaches over into such a page for a write
 * there: SIGSEGV. */
static int own_text(struct dl_phdr_info *info, size_t size, void *unused)
{
	(void)size, (void)unused;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *part = &info->dlpi_phdr[i];
		if (part->p_type != PT_LOAD || !(part->p_flags & PF_X))
			continue;
		uintptr_t start = info->dlpi_addr + part->p_vaddr, end = start + part->p_memsz;
		start &= ~(uintptr_t)(PAGE - 1);
		if (mprotect((void *)start, end - start, PROT_READ | PROT_WRITE | PROT_EXEC) < 0)
			continue;
		for (uintptr_t page = start; page < end; page += PAGE)
			*(volatile uint8_t *)page = *(volatile uint8_t *)page;
		mprotect((void *)start, end - start, PROT_READ | PROT_EXEC);
	}
	return 1; /* the first is the program itself */
}

/*
 * Nobody inside is to have our descriptors or memory: what is written to the channel is
 * taken for ours.  Newer releases of gVisor ask in /proc/1/fd whether one may trace us,
 * which nobody may who lacks a capability of ours; older ones ask nothing there, so for
 * those the host gives us CAP_SYS_ADMIN, for long enough to cover the places.  Returns 0,
 * or -1 when something stays open.
 */
static int hide(void)
{
	static const char *const places[] = {"/proc/1/fd", "/proc/1/task"};
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct caps[2];
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0 || syscall(SYS_capget, &head, caps) < 0)
		return -1;
	if (!(caps[0].permitted & 1u << CAP_SYS_ADMIN))
		return 0;
	for (size_t i = 0; i < sizeof places / sizeof *places; i++)
		if (mount("none", places[i], "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=4k,mode=555") < 0)
			return -1;
	caps[0].permitted &= ~(1u << CAP_SYS_ADMIN);
	caps[0].effective &= ~(1u << CAP_SYS_ADMIN);
	if (syscall(SYS_capset, &head, caps) < 0)
		return -1;
	return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, safe);
}

/* Caught, not ignored: an exec resets it. */
static void on_sigpipe(int number) { (void)number; }

int main(int argc, char **argv)
{
	struct epoll_event events[64];
	sigset_t chld;
	char name[HOST_NAME_MAX + 1] = "";
	if (argc > 1 && strcmp(argv[0], "isobox-hostname") == 0) {
		tell_generation(argv[1]);
		if (sethostname(argv[1], strlen(argv[1])) < 0)
			return 1;
		write_own_name(argv[1]);
		return 0;
	}
	signal(SIGPIPE, on_sigpipe);
	umask(022);
	if (getpid() == 1 && hide() < 0) /* first: the filter stays */
		return 1;
	if (getpid() == 1 && !getenv("NAMESPACES") && refuse_namespaces() < 0)
		return 1;
	for (int cap = 0; getpid() == 1 && cap <= CAP_LAST; cap++)
		prctl(PR_CAPBSET_DROP, cap, 0, 0, 0); /* see spec.py */
	if (getpid() == 1)
		dl_iterate_phdr(own_text, NULL);
	if (getpid() == 1 && gethostname(name, sizeof name - 1) == 0) {
		tell_generation(name);
		write_own_name(name);
	}
	sigemptyset(&chld);
	sigaddset(&chld, SIGCHLD);
	sigprocmask(SIG_BLOCK, &chld, NULL);
	children = signalfd(-1, &chld, SFD_NONBLOCK | SFD_CLOEXEC);
	poller = epoll_create1(EPOLL_CLOEXEC);
	if (children < 0 || poller < 0)
		return 1;
	fcntl(0, F_SETFL, O_NONBLOCK);
	fcntl(1, F_SETFL, O_NONBLOCK);
	for (int fd = 0; fd < 3; fd++)
		fcntl(fd, F_SETFD, FD_CLOEXEC);
	tx.source.kind = TO_HOST;
	watch(&host_source, 0, EPOLLIN, 1);
	watch(&children_source, children, EPOLLIN, 1);
	for (;;) {
		int n = epoll_wait(poller, events, 64, -1);
		for (int i = 0; i < n; i++)
			if (!handle(&events[i]))
				return 0;
		bury();
		speak();
	}
}
