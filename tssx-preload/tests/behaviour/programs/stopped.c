// Three threads on three connections; one is stopped again and again in the middle of what it does, and each time the other two
// must go on: stopped server SOCKET | stopped client SOCKET free|locked STOPS.
//
// A thread is stopped by a signal whose handler waits until the others have made so many round trips. `locked` is the
// counter-proof: all three hold one lock during a call, as they would with a lock of the whole process in the library.
// Prints how often it was stopped, and how often inside the library.

#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

enum { THREADS = 3, SIZE = 64, WARM_UP = 200, AHEAD = 20, PATIENCE_MS = 5000 };

static volatile long trips[THREADS];
static volatile int end_all, stopped, stops, inside, stuck;
static unsigned long library_start, library_end;
static pthread_mutex_t one_lock = PTHREAD_MUTEX_INITIALIZER;
static volatile int locked;
static int patience_ms = PATIENCE_MS;

static long milliseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void on_stop(int signal, siginfo_t *info, void *context) {
    (void)signal;
    (void)info;
    unsigned long at = ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    int here = at >= library_start && at < library_end;
    long first = trips[0], second = trips[1], start = milliseconds();
    while (trips[0] < first + AHEAD || trips[1] < second + AHEAD) {
        struct timespec moment = {0, 20000};
        nanosleep(&moment, NULL);
        if (milliseconds() - start > patience_ms) {
            stuck = 1;
            break;
        }
    }
    inside += here;
    stops++;
    stopped = 0;
}

static int transfer(int sending, int fd, char *bytes) {
    for (size_t have = 0; have < SIZE;) {
        int lock = locked;
        if (lock) pthread_mutex_lock(&one_lock);
        ssize_t count = sending ? write(fd, bytes + have, SIZE - have) : read(fd, bytes + have, SIZE - have);
        if (lock) pthread_mutex_unlock(&one_lock);
        if (count <= 0) return 0;
        have += count;
    }
    return 1;
}

static void *serve(void *connection) {
    int fd = (int)(long)connection;
    char bytes[SIZE];
    while (transfer(0, fd, bytes) && transfer(1, fd, bytes)) continue;
    return NULL;
}

static int connections[THREADS];

static void *ask(void *number) {
    long self = (long)number;
    char bytes[SIZE] = {0};
    sigset_t stop;
    sigemptyset(&stop);
    sigaddset(&stop, SIGUSR1);
    if (self != 2) pthread_sigmask(SIG_BLOCK, &stop, NULL);
    while (!end_all && transfer(1, connections[self], bytes) && transfer(0, connections[self], bytes)) trips[self]++;
    return NULL;
}

static void find_library(void) {
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[500];
    while (maps && fgets(line, sizeof line, maps))
        if (strstr(line, "libtssx_preload") && strstr(line, "r-xp")) sscanf(line, "%lx-%lx", &library_start, &library_end);
    if (maps) fclose(maps);
}

static int server(struct sockaddr_un *address) {
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)address, sizeof *address) || listen(listener, THREADS)) return 9;
    puts("ready");
    fflush(stdout);
    pthread_t threads[THREADS];
    for (long i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, serve, (void *)(long)accept(listener, NULL, NULL));
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 3) return 9;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, argv[2], sizeof address.sun_path - 1);
    if (argc != 5) return server(&address);
    find_library();
    struct sigaction action = {.sa_sigaction = on_stop, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGUSR1, &action, NULL);
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        connections[i] = socket(AF_UNIX, SOCK_STREAM, 0);
        if (connect(connections[i], (struct sockaddr *)&address, sizeof address)) return 9;
    }
    for (long i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, ask, (void *)i);
    while (trips[0] < WARM_UP || trips[1] < WARM_UP || trips[2] < WARM_UP) usleep(1000);
    // What has to show that it gets stuck need not be waited for so long.
    locked = !strcmp(argv[3], "locked");
    if (locked) patience_ms = 300;
    usleep(1000);
    for (int wanted = atoi(argv[4]); stops < wanted && !stuck;) {
        long before = trips[2];
        while (trips[2] < before + 3) usleep(50);
        stopped = 1;
        pthread_kill(threads[2], SIGUSR1);
        while (stopped) usleep(50);
    }
    printf("%s: stopped %d times, %d of them inside the library\n", stuck ? "stuck" : "free", stops, inside);
    fflush(stdout);
    _exit(0);
}
