/*
 * The channel between the host and PID 1 of a sandbox: one header, twenty-odd
 * frame types.  isolation/channel/frames.py is the same table in Python; a test
 * compares the two, so change them together.
 *
 * Every integer is little-endian.  A frame from the host, header included, is
 * at most FRAME_FROM_HOST bytes: a pipe takes so little in one piece or not at
 * all, so a host that dies while writing can't leave half a frame behind.
 */
#ifndef ISOBOX_WIRE_H
#define ISOBOX_WIRE_H

#include <stdint.h>

#define CHANNEL_VERSION 2 /* 2: RELIEVE */
#define FRAME_FROM_HOST 4096u     /* PIPE_BUF on Linux */
#define FRAME_DATA_MAX (128u << 10) /* payload of one OUT frame */
#define STREAM_WINDOW (1u << 20)  /* output kept for one stream until acknowledged */
#define STDIN_WINDOW (1u << 20)  /* input kept for one exec until its process took it */
#define START_MAX (2u << 20)      /* argv and environment of one exec, in all */
#define SPARE_RINGS 4
#define EXECS_MAX 1024u           /* execs known to the init at once */

#define HELLO_MAGIC "isobox\x00\x01hello\xf5\xfa\xfe" /* 16 bytes; 0xf5-0xff never occur in UTF-8 */
#define NONCE_SIZE 16u

struct frame {
	uint32_t len; /* payload bytes that follow */
	uint8_t type;
	uint8_t stream; /* 1 stdout or terminal, 2 stderr; the stage of a failure in FAILED */
	uint16_t flags;
	uint32_t exec; /* the host's number for an exec; 0: the link itself */
	uint32_t aux;
	uint64_t offset; /* bytes of that stream before this frame's payload */
};

enum from_host {
	HELLO = 1,  /* payload: magic, nonce.  Forgets half-read frames and half-made execs */
	START_PART, /* payload: a piece of the request */
	START,      /* payload: its last piece; flags: START_*; aux: rows << 16 | columns */
	STDIN,
	STDIN_EOF, /* offset: bytes of input in all */
	ACK,       /* what comes before offset is safe on the host and may be forgotten */
	SIGNAL,    /* aux: number; flags 1: the whole process group */
	RESIZE,    /* aux: rows << 16 | columns */
	RESUME,    /* after HELLO: send this stream from offset on */
	FORGET,    /* the host has the exit status and all output */
	PING,
	RELIEVE,   /* memory is short: end the largest process, if it holds aux MiB or more, unless the root's changes take
		    * offset bytes (0: whatever they take) */
};

enum from_init {
	HELLO_BACK = 65, /* payload: magic, nonce, version; then the news of each exec, then READY */
	READY,
	STARTED, /* aux: pid inside */
	FAILED,  /* aux: errno; stream: enum stage */
	OUT,
	EXIT,      /* payload: struct exit_report */
	STDIN_ACK, /* offset: bytes the process took; aux: bytes waiting for it; flags 1: it takes no more */
	PONG,      /* aux as in PING */
	RELIEVED,  /* to RELIEVE; aux: pid of what was killed, exec: to which it belonged (0: none of ours), offset: its
		    * resident bytes.  aux 0: nothing was killed, offset: bytes that the root's changes take */
};

/* START_DIAL starts nothing: argv[0] is a port of the loopback, or an abstract address
 * ("@NAME"), to connect to, the socket its input and output. */
enum start_flags { START_PTY = 1, START_FILES = 2, START_ROOT_OK = 4, START_NO_STDIN = 8, START_DIAL = 16 };

enum stage { STAGE_REQUEST = 1, STAGE_USER, STAGE_CWD, STAGE_EXEC, STAGE_SYSTEM };

/* The head of a START request; user, cwd, argv and env follow, each NUL-terminated. */
struct start_head {
	uint32_t argc;
	uint32_t envc;
	uint64_t nproc;  /* RLIMIT_NPROC; 0: leave as it is */
	uint64_t nofile; /* RLIMIT_NOFILE; 0: leave as it is */
};

struct exit_report {
	uint32_t signalled; /* 1: code is a signal's number */
	uint32_t code;
	uint64_t cpu_us;
	uint64_t max_rss_kib;
	uint64_t final[2]; /* bytes of stdout and stderr written by the time it ended */
};

#endif
