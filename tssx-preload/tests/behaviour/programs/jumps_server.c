// A line server that leaves blocked calls by siglongjmp and whose threads are cancelled inside them, and then goes on with the
// same connection. It also uses the connection's kind before main and after it.
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

static sigjmp_buf back;
static int connection = -1, late = -1;

static void jump(int signal) {
    (void)signal;
    siglongjmp(back, 1);
}

static void alarm_in(int microseconds) {
    struct itimerval timer = {.it_value = {.tv_usec = microseconds}};
    setitimer(ITIMER_REAL, &timer, NULL);
}

// One request and its reply, which shows that nothing was lost and nothing is locked.
static int echo(void) {
    char line[16];
    ssize_t got = recv(connection, line, sizeof line, MSG_WAITALL);
    return got == sizeof line && write(connection, line, sizeof line) == sizeof line;
}

static void *block(void *how) {
    char byte[1 << 16];
    struct pollfd entry = {connection, POLLIN, 0};
    memset(byte, 'w', sizeof byte);
    if (!strcmp(how, "read")) read(connection, byte, 1);
    if (!strcmp(how, "recvmsg")) {
        struct iovec part = {byte, 1};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
        recvmsg(connection, &message, 0);
    }
    if (!strcmp(how, "poll")) poll(&entry, 1, 10000);
    if (!strcmp(how, "epoll")) {
        int epoll = epoll_create1(0);
        struct epoll_event event = {.events = EPOLLIN};
        epoll_ctl(epoll, EPOLL_CTL_ADD, connection, &event);
        epoll_wait(epoll, &event, 1, 10000);
    }
    return NULL;
}

static void cancelled(const char *how) {
    pthread_t thread;
    void *result;
    pthread_create(&thread, NULL, block, (void *)how);
    usleep(3000);
    pthread_cancel(thread);
    pthread_join(thread, &result);
    printf("%s: %s\n", how, result == PTHREAD_CANCELED ? "cancelled" : "returned");
}

static int say(const char *what, int value) {
    return printf("%s: %d\n", what, value);
}

// Before main: the calls work although no constructor of the library may have run.
__attribute__((constructor)) static void early(void) {
    int pair[2];
    char byte = 0;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) || write(pair[0], "e", 1) != 1 || read(pair[1], &byte, 1) != 1) _exit(3);
    close(pair[0]);
    close(pair[1]);
}

// After main, and after the library's own end if it had one. The client is gone by then, but what it sent is not.
__attribute__((destructor)) static void at_the_end(void) {
    char line[4];
    if (late >= 0) {
        ssize_t got = recv(late, line, sizeof line, MSG_WAITALL);
        ssize_t sent = send(late, "late", 4, MSG_NOSIGNAL);
        dprintf(1, "destructor: %zd %zd\n", got, sent);
    }
}

static void at_exit(void) {
    char line[16];
    if (connection >= 0) dprintf(1, "atexit: %zd\n", recv(connection, line, sizeof line, MSG_WAITALL));
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    snprintf(name.sun_path, sizeof name.sun_path, "%s", argv[1]);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&name, sizeof name) || listen(listener, 5)) return 1;
    puts("ready");
    fflush(stdout);
    connection = accept(listener, NULL, NULL);
    for (int round = 0; round < 20; round++)
        if (!echo()) return 1;
    struct sigaction action = {.sa_handler = jump, .sa_flags = SA_RESTART | SA_NODEFER};
    sigaction(SIGALRM, &action, NULL);
    volatile int jumps = 0;
    for (volatile int round = 0; round < 10; round++) {
        if (sigsetjmp(back, 1) == 0) {
            char byte;
            struct pollfd entry = {connection, POLLIN, 0};
            alarm_in(1500);
            if (round % 2) poll(&entry, 1, 10000);
            else read(connection, &byte, 1);
        } else {
            jumps++;
        }
        send(connection, "go on", 5, 0);
        if (!echo()) return 1;
    }
    say("jumps", jumps);
#ifdef BUSY
    // Out of calls that do not wait, wherever they are just then.
    for (volatile int round = 0; round < 300; round++) {
        if (sigsetjmp(back, 1) == 0) {
            char byte;
            alarm_in(50 + round % 40);
            for (;;) recv(connection, &byte, 1, MSG_DONTWAIT | (round % 2 ? MSG_PEEK : 0));
        }
    }
#endif
    const char *calls[] = {"read", "recvmsg", "poll", "epoll"};
    for (int round = 0; round < 8; round++) {
        cancelled(calls[round % 4]);
        send(connection, "go on", 5, 0);
        say("echo", echo());
    }
    late = accept(listener, NULL, NULL);
    atexit(at_exit);
    puts("done");
    fflush(stdout);
    while (getchar() != EOF) {}
    return 0;
}
