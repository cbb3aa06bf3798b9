/*
 * From a request to a running process.
 *
 * vfork, not fork: under gVisor a fork of PID 1 costs twice as much, and the
 * child shares our memory until it execs, so it can write down why it failed.
 * The child therefore calls nothing but system calls.
 */
#include "init.h"

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

struct plan {
	const struct request *req;
	struct identity who;
	const char *cwd;
	int cwd_required;
	char **env;
	char **candidates; /* paths to try, in order */
	int fds[3];        /* the child's ends */
	int terminal, privileged;
	struct __user_cap_header_struct caps_head;
	struct __user_cap_data_struct caps[2]; /* as ours, nothing inheritable */
	volatile int stage, error;
};

/* Every call here costs about 0.1 ms under gVisor: whatever can be done beforehand is. */
static void child(struct plan *p)
{
	const struct request *req = p->req;
	struct rlimit limit = {req->head.nofile, req->head.nofile}, tasks = {req->head.nproc, req->head.nproc};
	sigset_t none;
	int denied = 0;

	p->stage = STAGE_SYSTEM;
	syscall(SYS_setsid);
	for (int i = 0; i < 3; i++)
		if (syscall(SYS_dup2, p->fds[i], i) < 0)
			goto failed;
	if (p->terminal && ioctl(0, TIOCSCTTY, 0) < 0)
		goto failed;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if ((req->head.nofile && setrlimit(RLIMIT_NOFILE, &limit) < 0) ||
	    (req->head.nproc && setrlimit(RLIMIT_NPROC, &tasks) < 0))
		goto failed;
	if (p->privileged) {
		/* The bounding set is empty: an exec by root, or of a setuid program, gains what is
		 * inheritable, and nobody but root has that.  The raw calls: musl's own would look
		 * for other threads. */
		if (syscall(SYS_setgroups, (size_t)p->who.ngroups, p->who.groups) < 0 ||
		    syscall(SYS_setresgid, p->who.gid, p->who.gid, p->who.gid) < 0 ||
		    (p->who.uid != 0 && syscall(SYS_capset, &p->caps_head, p->caps) < 0) ||
		    syscall(SYS_setresuid, p->who.uid, p->who.uid, p->who.uid) < 0)
			goto failed;
	}
	p->stage = STAGE_CWD;
	if (chdir(p->cwd) < 0 && (p->cwd_required || chdir("/") < 0))
		goto failed;
	p->stage = STAGE_EXEC;
	for (char **path = p->candidates; *path; path++) {
		execve(*path, req->argv, p->env);
		if (errno == EACCES)
			denied = 1;
		else if (errno != ENOENT && errno != ENOTDIR)
			goto failed;
	}
	errno = denied ? EACCES : ENOENT;
failed:
	p->error = errno;
	_exit(127);
}

static const char *lookup(char **env, const char *name)
{
	size_t n = strlen(name);
	for (; *env; env++)
		if (strncmp(*env, name, n) == 0 && (*env)[n] == '=')
			return *env + n + 1;
	return NULL;
}

static char *joined(const char *a, const char *b, const char *c)
{
	char *s = malloc(strlen(a) + strlen(b) + strlen(c) + 1);
	if (s)
		strcat(strcat(strcpy(s, a), b), c);
	return s;
}

static void free_list(char **list, size_t from)
{
	for (size_t i = from; list && list[i]; i++)
		free(list[i]);
	free(list);
}

/* The request's environment and what it leaves open: HOME, USER, LOGNAME and PATH.  Whoever may
 * not write to /usr has programs of their own in ~/.local/bin: pip and npm put them there. */
static char **environment(const struct request *req, const struct identity *who)
{
	char path[sizeof who->home + sizeof "/.local/bin:" DEFAULT_PATH];
	const char *names[] = {"HOME", "USER", "LOGNAME", "PATH"};
	const char *values[] = {who->home, who->name, who->name, who->uid ? path : DEFAULT_PATH};
	snprintf(path, sizeof path, "%s/.local/bin:%s", who->home, DEFAULT_PATH);
	size_t n = req->head.envc;
	char **env = calloc(n + 5, sizeof *env);
	if (!env)
		return NULL;
	memcpy(env, req->env, n * sizeof *env);
	for (int i = 0; i < 4; i++)
		if (!lookup(req->env, names[i]) && !(env[n++] = joined(names[i], "=", values[i]))) {
			free_list(env, req->head.envc);
			return NULL;
		}
	return env;
}

/* Where execvp would look. */
static char **candidates(const struct request *req, char **env)
{
	const char *name = req->flags & START_FILES ? "/.isobox/files" : req->argv[0];
	const char *path = lookup(env, "PATH");
	size_t n = 2, i = 0;
	for (const char *c = path ? path : ""; *c; c++)
		n += *c == ':';
	char **list = calloc(n + 1, sizeof *list);
	if (!list)
		return NULL;
	if (strchr(name, '/') || !*name || !path) {
		list[0] = strdup(name);
		return list;
	}
	for (;;) {
		size_t len = strcspn(path, ":");
		char *entry = strndup(path, len);
		list[i++] = entry ? joined(len ? entry : ".", "/", name) : NULL;
		free(entry);
		if (!path[len] || !list[i - 1])
			return list;
		/* What is not there need not be tried; looking is cheaper here than in the child. */
		if (*path == '/' && access(list[i - 1], F_OK) < 0 && errno == ENOENT)
			free(list[--i]);
		path += len + 1;
	}
}

static void close_all(int *fds, int n)
{
	for (int i = 0; i < n; i++)
		if (fds[i] >= 0)
			close(fds[i]);
}

/* ours[0..2]: in, out, err; theirs[0..2]: the child's. */
static int open_pipes(int ours[3], int theirs[3], int no_stdin)
{
	int p[2];
	if (no_stdin && (theirs[0] = open("/dev/null", O_RDONLY | O_CLOEXEC)) < 0)
		return -1;
	for (int i = no_stdin ? 1 : 0; i < 3; i++) {
		if (pipe2(p, O_CLOEXEC) < 0)
			return -1;
		ours[i] = p[i == 0];
		theirs[i] = p[i != 0];
	}
	/* Larger pieces: the sentry charges by the call. */
	fcntl(ours[1], F_SETPIPE_SZ, 1 << 20);
	if (!no_stdin)
		fcntl(ours[0], F_SETPIPE_SZ, STDIN_WINDOW);
	return 0;
}

static int open_terminal(int ours[3], int theirs[3], const struct request *req, const struct identity *who)
{
	struct winsize size = {.ws_row = req->rows, .ws_col = req->cols};
	char name[32];
	int unlock = 0;
	unsigned index;
	ours[1] = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (ours[1] < 0 || ioctl(ours[1], TIOCSPTLCK, &unlock) < 0 || ioctl(ours[1], TIOCGPTN, &index) < 0)
		return -1;
	snprintf(name, sizeof name, "/dev/pts/%u", index);
	theirs[0] = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (theirs[0] < 0)
		return -1;
	ioctl(ours[1], TIOCSWINSZ, &size);
	(void)!fchown(theirs[0], who->uid, (gid_t)-1); /* its descriptors serve all the same */
	ours[0] = fcntl(ours[1], F_DUPFD_CLOEXEC, 3);
	theirs[1] = fcntl(theirs[0], F_DUPFD_CLOEXEC, 3);
	theirs[2] = fcntl(theirs[0], F_DUPFD_CLOEXEC, 3);
	return ours[0] < 0 || theirs[1] < 0 || theirs[2] < 0 ? -1 : 0;
}

int safe[2] = {-1, -1};

/* A child holds what we hold until it has replaced it, and /proc shows it all that while.  So
 * the channel is in flight between two sockets of ours then, which nobody can open in there. */
static int put_away(void)
{
	char room[CMSG_SPACE(2 * sizeof(int))] = {0}, byte = 0;
	struct iovec iov = {&byte, 1};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	int channel[2] = {0, 1};
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof channel);
	memcpy(CMSG_DATA(c), channel, sizeof channel);
	if (safe[0] < 0)
		return 0;
	if (sendmsg(safe[0], &m, 0) != 1)
		return -1;
	close(0);
	close(1);
	return 0;
}

static void take_back(void)
{
	char room[CMSG_SPACE(2 * sizeof(int))], byte;
	struct iovec iov = {&byte, 1};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
	int channel[2] = {-1, -1};
	if (safe[0] < 0)
		return;
	if (recvmsg(safe[1], &m, MSG_CMSG_CLOEXEC) == 1 && CMSG_FIRSTHDR(&m))
		memcpy(channel, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof channel);
	if (channel[0] != 0 || channel[1] != 1) /* the lowest free ones: nothing was opened meanwhile */
		_exit(1);
}

static void launch(struct plan *p, struct spawned *got)
{
	if (put_away() < 0) {
		got->stage = STAGE_SYSTEM;
		got->error = errno;
		return;
	}
	pid_t pid = got->pid = vfork();
	if (pid == 0)
		child(p);
	take_back();
	if (pid < 0) {
		got->stage = STAGE_SYSTEM;
		got->error = errno;
	} else if (p->error) {
		got->stage = p->stage;
		got->error = p->error;
		while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
			;
	}
}

/* Start what req asks for; got->stage tells where it failed, or is 0. */
void spawn(const struct request *req, struct spawned *got)
{
	struct plan p = {.req = req, .terminal = req->flags & START_PTY};
	int ours[3] = {-1, -1, -1}, theirs[3] = {-1, -1, -1};

	memset(got, 0, sizeof *got);
	got->stage = STAGE_USER;
	if ((got->error = identify(&p.who, req->user)) != 0)
		goto out;
	if (p.who.uid == 0 && !(req->flags & START_ROOT_OK)) {
		got->error = EPERM;
		goto out;
	}
	got->stage = STAGE_SYSTEM;
	p.env = environment(req, &p.who);
	p.candidates = p.env ? candidates(req, p.env) : NULL;
	if (!p.candidates) {
		got->error = ENOMEM;
		goto out;
	}
	p.cwd_required = *req->cwd != 0;
	p.cwd = *req->cwd ? req->cwd : p.who.home;
	if ((p.terminal ? open_terminal(ours, theirs, req, &p.who)
			: open_pipes(ours, theirs, req->flags & START_NO_STDIN)) < 0) {
		got->error = errno;
		goto out;
	}
	memcpy(p.fds, theirs, sizeof theirs);
	p.privileged = geteuid() == 0;
	p.caps_head.version = _LINUX_CAPABILITY_VERSION_3;
	syscall(SYS_capget, &p.caps_head, p.caps);
	p.caps[0].inheritable = p.caps[1].inheritable = 0;
	got->stage = 0;
	launch(&p, got);
out:
	close_all(theirs, 3);
	if (got->stage) {
		close_all(ours, 3);
		ours[0] = ours[1] = ours[2] = -1;
	}
	got->in = ours[0];
	got->out = ours[1];
	got->err = ours[2];
	free_list(p.env, req->head.envc);
	free_list(p.candidates, 0);
}
