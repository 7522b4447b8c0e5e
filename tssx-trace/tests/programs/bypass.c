/* A client whose library has moved its connection into a ring, and which then writes past the library: by the system call itself, which no
 * library can interpose. "go" exchanges 2000 times 64 bytes with an echo server, "past" writes 64 bytes. */
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef __x86_64__
#error "the library is for x86-64"
#endif

static long write_past(long fd, const void *bytes, unsigned long count) {
    long result = 1; /* SYS_write */
    __asm__ volatile("syscall" : "+a"(result) : "D"(fd), "S"(bytes), "d"(count) : "rcx", "r11", "memory");
    return result;
}

int main(int argc, char **argv) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char bytes[64], line[16];
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (argc != 2)
        return 2;
    strncpy(address.sun_path, argv[1], sizeof address.sun_path - 1);
    memset(bytes, 'x', sizeof bytes);
    if (fd < 0 || connect(fd, (void *)&address, sizeof address) != 0)
        return 1;
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        if (strcmp(line, "past\n") == 0) {
            if (write_past(fd, bytes, sizeof bytes) != sizeof bytes)
                return 1;
        } else {
            for (int i = 0; i < 2000; i++) {
                if (write(fd, bytes, sizeof bytes) != sizeof bytes)
                    return 1;
                for (size_t got = 0; got < sizeof bytes;) {
                    ssize_t more = read(fd, bytes + got, sizeof bytes - got);
                    if (more <= 0)
                        return 1;
                    got += (size_t)more;
                }
            }
        }
        puts("done");
        fflush(stdout);
    }
    return 0;
}
