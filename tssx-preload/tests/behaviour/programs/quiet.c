// One end of a connection that is warmed up and then used under guard: quiet server|client SOCKET CALLS GUARD COUNT.
//
// CALLS: read, send, sendto, readv, sendmsg (with their receiving halves), or stream: one way, many small messages.
// GUARD: syscalls, every system call of this thread comes to us first (prctl(2), PR_SET_SYSCALL_USER_DISPATCH);
//        memory, guard_arm() of quiet_guard.c, which aborts at the next allocation or mapping;
//        allocates, the same with an allocation of our own, which it must notice.
//
// The promise holds while the peer keeps up. On a shared machine it does not always: a message that took PAUSE_US or more, and
// the next one, are not judged. Prints how many were, how many pauses there were, and how many
// messages with system calls were among those judged (of all system calls).

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

enum { SIZE = 64, WARM_UP = 3000, STREAM_ROOM = 4096, PAUSE_US = 20, SHOWN = 10, DISPATCH = 59, DISPATCH_ON = 1 };

static volatile char selector;  // 0: system calls go through, 1: they come to us
static volatile int guarded, made;
static volatile long done;
static long judged, pauses, paused_ticks, calls_made, all_calls, pause_ticks, last_ticks;
static struct { int number; void *address; } last_call;
static struct { int number; void *address; long at; } shown[SHOWN];
static int paused_before;

static long ticks(void) {
    return (long)__builtin_ia32_rdtsc();
}

static void leave(int code) {
    selector = 0;
    _exit(code);
}

static void wrong(const char *what) {
    selector = 0;
    printf("%s after %ld: errno %d\n", what, done, errno);
    fflush(stdout);
    leave(4);
}

// Notes the system call and lets it happen: the instruction (two bytes) is executed again.
static void on_syscall(int signal, siginfo_t *info, void *context) {
    (void)signal;
    selector = 0;
    made++;
    all_calls++;
    last_call.number = info->si_syscall;
    last_call.address = info->si_call_addr;
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] -= 2;
}

static void calibrate(void) {
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    long from = ticks();
    usleep(20000);
    clock_gettime(CLOCK_MONOTONIC, &end);
    long us = (end.tv_sec - start.tv_sec) * 1000000 + (end.tv_nsec - start.tv_nsec) / 1000;
    pause_ticks = (ticks() - from) / us * PAUSE_US;
}

static void watch_system_calls(void) {
    struct sigaction action = {.sa_sigaction = on_syscall, .sa_flags = SA_SIGINFO};
    sigaction(SIGSYS, &action, NULL);
    calibrate();
    if (prctl(DISPATCH, DISPATCH_ON, 0, 0, &selector)) {
        perror("no syscall user dispatch");
        exit(9);
    }
}

static void arm_memory(void) {
    void (*arm)(void) = (void (*)(void))dlsym(RTLD_DEFAULT, "guard_arm");
    if (!arm) {
        fprintf(stderr, "quiet_guard is not preloaded\n");
        exit(9);
    }
    arm();
}

// Between two messages: judges the one that ended.
static void judge(void) {
    if (!guarded) return;
    long now = ticks();
    int paused = now - last_ticks >= pause_ticks;
    if (!paused && !paused_before) {
        judged++;
        if (made) {
            if (calls_made < SHOWN) {
                shown[calls_made].number = last_call.number;
                shown[calls_made].address = last_call.address;
                shown[calls_made].at = done;
            }
            calls_made++;
        }
    }
    pauses += paused;
    if (paused) paused_ticks += now - last_ticks;
    paused_before = paused;
    made = 0;
    last_ticks = now;
    selector = 1;
}

static void report(void) {
    selector = 0;
    guarded = 0;
    printf("judged %ld pauses %ld of-us %ld system-calls %ld of %ld\n", judged, pauses, paused_ticks / (pause_ticks / PAUSE_US),
           calls_made, all_calls);
    for (int i = 0; i < SHOWN && i < calls_made; i++) {
        Dl_info place = {0};
        dladdr(shown[i].address, &place);
        printf("system call %d by %s+%#lx in message %ld\n", shown[i].number, place.dli_fname ? place.dli_fname : "?",
               (long)((char *)shown[i].address - (char *)place.dli_fbase), shown[i].at);
    }
    fflush(stdout);
}

static ssize_t put(const char *calls, int fd, char *bytes, size_t length) {
    struct iovec parts[2] = {{bytes, length / 2}, {bytes + length / 2, length - length / 2}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    if (!strcmp(calls, "send")) return send(fd, bytes, length, MSG_NOSIGNAL);
    if (!strcmp(calls, "sendto")) return sendto(fd, bytes, length, 0, NULL, 0);
    if (!strcmp(calls, "readv")) return writev(fd, parts, 2);
    if (!strcmp(calls, "sendmsg")) return sendmsg(fd, &message, 0);
    return write(fd, bytes, length);
}

static ssize_t get(const char *calls, int fd, char *bytes, size_t length) {
    struct iovec parts[2] = {{bytes, length / 2}, {bytes + length / 2, length - length / 2}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    if (!strcmp(calls, "send")) return recv(fd, bytes, length, 0);
    if (!strcmp(calls, "sendto")) return recvfrom(fd, bytes, length, 0, NULL, NULL);
    if (!strcmp(calls, "readv")) return readv(fd, parts, 2);
    if (!strcmp(calls, "sendmsg")) return recvmsg(fd, &message, 0);
    return read(fd, bytes, length);
}

static void put_all(const char *calls, int fd, char *bytes) {
    if (put(calls, fd, bytes, SIZE) != SIZE) wrong("a message was not sent whole");
}

static void get_all(const char *calls, int fd, char *bytes) {
    for (size_t have = 0; have < SIZE;) {
        ssize_t count = get(calls, fd, bytes + have, SIZE - have);
        if (count <= 0) wrong("a message was not received");
        have += count;
    }
}

// One message there and back; each carries its number.
static void round_trip(int server, const char *calls, int fd, long number) {
    char bytes[SIZE];
    memset(bytes, (int)number, sizeof bytes);
    if (!server) put_all(calls, fd, bytes);
    get_all(calls, fd, bytes);
    for (size_t at = 0; at < sizeof bytes; at++)
        if (bytes[at] != (char)number) wrong("a wrong byte");
    if (server) put_all(calls, fd, bytes);
}

static char room[STREAM_ROOM];

// A reader that falls behind takes more at once: each page that it may read into is used once before it is judged.
static void use_all_room(int server, int fd) {
    ssize_t count = server ? recv(fd, room, sizeof room, MSG_WAITALL) : write(fd, room, sizeof room);
    if (count != sizeof room) wrong("the room was not filled");
}

static void stream(int server, int fd, long count) {
    long have;
    if (!server) {
        for (done = 0; done < count; done++, judge())
            if (write(fd, room, SIZE) != SIZE) wrong("a message was not sent whole");
    } else {
        // No byte of what follows the stream.
        for (have = 0; have < count * SIZE; judge()) {
            long rest = count * SIZE - have;
            ssize_t got = read(fd, room, rest < STREAM_ROOM ? rest : STREAM_ROOM);
            if (got <= 0) wrong("nothing was received");
            have += got;
            done = have / SIZE;
        }
    }
}

// Not optimised away.
static void *(*volatile allocate)(size_t) = malloc;

int main(int argc, char **argv) {
    if (argc != 6) return 9;
    int server = !strcmp(argv[1], "server");
    const char *calls = argv[3], *guard = argv[4];
    long count = atol(argv[5]);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, argv[2], sizeof address.sun_path - 1);
    cpu_set_t cpu;
    CPU_ZERO(&cpu);
    CPU_SET(server, &cpu);
    sched_setaffinity(0, sizeof cpu, &cpu);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (server) {
        if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 1)) return 9;
        puts("ready");
        fflush(stdout);
        fd = accept(fd, NULL, NULL);
    } else if (connect(fd, (struct sockaddr *)&address, sizeof address)) {
        return 9;
    }
    int streams = !strcmp(calls, "stream");
    for (done = 0; done < WARM_UP; done++) round_trip(server, calls, fd, done);
    if (streams) {
        stream(server, fd, WARM_UP);
        use_all_room(server, fd);
        round_trip(!server, calls, fd, 0);
    }
    if (!strcmp(guard, "syscalls")) {
        watch_system_calls();
        guarded = paused_before = 1;
        last_ticks = ticks();
    } else {
        arm_memory();
    }
    if (!strcmp(guard, "allocates")) free(allocate(100));
    if (streams)
        stream(server, fd, count);
    else
        for (done = 0; done < count; done++, judge()) round_trip(server, calls, fd, done);
    selector = 0;
    // Both ends must be through before one is gone; what the reader of a stream takes is not the end of it.
    round_trip(server ^ streams, calls, fd, 0);
    if (!strcmp(guard, "syscalls"))
        report();
    else if (write(1, "no allocation\n", 14) < 0)
        return 9;
    leave(0);
}
