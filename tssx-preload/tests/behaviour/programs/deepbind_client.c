// A program whose plug-in is loaded with RTLD_DEEPBIND, as PHP loads its extensions: the plug-in's calls bind to libc, past every preload.
// It talks to the line server over a connection of its own, or (HOST_CONNECTS) over one that the program opened and has not used.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int dial(const char *path) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    snprintf(name.sun_path, sizeof name.sun_path, "%s", path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&name, sizeof name)) perror("connect");
    return fd;
}

static void ask(int fd, int count) {
    for (int number = 0; number < count; number++) {
        char line[40];
        int length = snprintf(line, sizeof line, "square %d\n", number);
        if (write(fd, line, length) != length) perror("write");
        for (length = 0; !length || line[length - 1] != '\n'; length++)
            if (read(fd, line + length, 1) != 1) { perror("read"); exit(1); }
        printf("%d %ld\n", number, strtol(line, NULL, 10));
    }
}

#ifdef PLUGIN
void talk(const char *path, int fd) {
    if (fd < 0) fd = dial(path);
    ask(fd, 60);
    char line[40];
    ssize_t length = send(fd, "stop\n", 5, 0) == 5 ? recv(fd, line, sizeof line, MSG_WAITALL) : -1;
    printf("%.*s%d\n", (int)length, line, close(fd));
}
#else
int main(int argc, char **argv) {
    char name[200];
    snprintf(name, sizeof name, "%s.so", argv[0]);
    int fd = -1;
#ifdef HOST_CONNECTS
    fd = dial(argv[1]);
#endif
    (void)ask, (void)dial;
    void *plugin = dlopen(name, RTLD_NOW | RTLD_DEEPBIND);
    void (*talk)(const char *, int) = plugin ? (void (*)(const char *, int))dlsym(plugin, "talk") : NULL;
    if (argc != 2 || !talk) {
        printf("%s\n", dlerror());
        return 2;
    }
    talk(argv[1], fd);
    puts("done");
    fflush(stdout);
    while (getchar() != EOF) {}
    return 0;
}
#endif
