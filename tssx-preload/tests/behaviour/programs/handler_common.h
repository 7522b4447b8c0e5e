// What both readers with a handler need beside their own: includes, and a message with a descriptor, which ends a ring.
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what, int where);

static void pass_descriptor(int to, unsigned char byte) {
  struct iovec part = {&byte, 1};
  union { char room[CMSG_SPACE(sizeof(int))]; struct cmsghdr header; } control;
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof control.room};
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  int passed = 0;
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof passed);
  memcpy(CMSG_DATA(header), &passed, sizeof passed);
  if (sendmsg(to, &message, 0) != 1) fail("sendmsg", -1);
}

