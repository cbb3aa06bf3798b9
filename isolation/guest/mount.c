/*
 * Mounts a folder whose files the host serves, and hands the device to the program
 * that holds it (hold.c).  The host starts it inside, with the rights to mount.
 *
 * argv: isobox-mount ADDRESS PATH.  It ends with 0, or with the errno of what failed.
 */
#include "tar.h"

#include <stddef.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/un.h>

static int hand_over(const char *name, int device)
{
	struct sockaddr_un to = {.sun_family = AF_UNIX};
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {.head = {.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
	struct iovec iov = {"d", 1};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	size_t n = strlen(name);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (n + 1 > sizeof to.sun_path) {
		errno = ENAMETOOLONG;
		return -1;
	}
	memcpy(to.sun_path + 1, name, n);
	memcpy(CMSG_DATA(&control.head), &device, sizeof device);
	if (fd < 0 || connect(fd, (struct sockaddr *)&to, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + n)) < 0)
		return -1;
	return sendmsg(fd, &message, MSG_NOSIGNAL) == 1 ? 0 : -1;
}

int main(int argc, char **argv)
{
	char options[128];
	if (argc != 3 || *argv[2] != '/')
		return EINVAL;
	/* From the files of a snapshot a link may lie on the way. */
	int place = open_place(argv[2], 1);
	if (place < 0 || fchdir(place) < 0)
		return errno;
	int device = open("/dev/fuse", O_RDWR);
	if (device < 0)
		return errno;
	snprintf(options, sizeof options, "fd=%d,rootmode=40755,user_id=0,group_id=0,allow_other,default_permissions", device);
	if (mount("isobox", ".", "fuse", MS_NOSUID | MS_NODEV, options) < 0 || hand_over(argv[1], device) < 0)
		return errno;
	return 0;
}
