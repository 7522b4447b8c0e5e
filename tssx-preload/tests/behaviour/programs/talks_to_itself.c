// Serves its own child at the name that it is given, says what came, and then what its standard input holds.
#include <stdio.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static char bytes[200000];

static int whole(int fd, int writes, size_t length) {
    for (size_t done = 0; done < length;) {
        ssize_t moved = writes ? write(fd, bytes + done, length - done) : read(fd, bytes + done, length - done);
        if (moved <= 0) return 0;
        done += moved;
    }
    return 1;
}

static int ask(struct sockaddr_un *name) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)name, sizeof *name)) return 3;
    for (int number = 0; number < 100; number++) {
        memset(bytes, number, 64);
        if (!whole(fd, 1, 64) || !whole(fd, 0, 64) || bytes[63] != number) return 4;
    }
    for (size_t at = 0; at < sizeof bytes; at++) bytes[at] = at % 251;
    return whole(fd, 1, sizeof bytes) ? 0 : 5;
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    snprintf(name.sun_path, sizeof name.sun_path, "%s", argv[1]);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&name, sizeof name) || listen(listener, 1)) return 6;
    pid_t child = fork();
    if (child == 0) _exit(ask(&name));
    int fd = accept(listener, NULL, NULL), status = 0;
    for (int number = 0; number < 100; number++)
        if (!whole(fd, 0, 64) || !whole(fd, 1, 64)) return 7;
    unsigned long sum = 0;
    if (!whole(fd, 0, sizeof bytes)) return 8;
    for (size_t at = 0; at < sizeof bytes; at++) sum = sum * 31 + (unsigned char)bytes[at];
    printf("sum %lu, then %zd\n", sum, read(fd, bytes, 1));
    waitpid(child, &status, 0);
    printf("the child ended with %d\n", status);
    ssize_t count = 0;
    while ((count = read(0, bytes, 1000)) > 0) fwrite(bytes, 1, count, stdout);
    printf(", and %zd\n", count);
    return 0;
}
