// Asks the line server and prints what it said, with nothing but what every libc has.
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    snprintf(name.sun_path, sizeof name.sun_path, "%s", argv[1]);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&name, sizeof name)) perror("connect");
    for (int number = 0; number < 60; number++) {
        char line[40];
        int length = snprintf(line, sizeof line, "square %d\n", number);
        if (write(fd, line, length) != length) perror("write");
        for (length = 0; !length || line[length - 1] != '\n'; length++)
            if (read(fd, line + length, 1) != 1) return 1;
        printf("%d %.*s", number, length, line);
    }
    char rest[40];
    ssize_t length = send(fd, "stop\n", 5, 0) == 5 ? recv(fd, rest, sizeof rest, MSG_WAITALL) : -1;
    printf("%.*s%d\n", (int)length, rest, close(fd));
    puts("done");
    fflush(stdout);
    while (getchar() != EOF) {}
    return 0;
}
