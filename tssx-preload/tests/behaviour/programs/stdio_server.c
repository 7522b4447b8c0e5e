// The line server over C's stdio, whose own reads and writes no preload can see.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    snprintf(name.sun_path, sizeof name.sun_path, "%s", argv[1]);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&name, sizeof name) || listen(listener, 5)) {
        perror("listen");
        return 1;
    }
    puts("ready");
    fflush(stdout);
    int connection = accept(listener, NULL, NULL);
    FILE *in = fdopen(connection, "r"), *out = fdopen(dup(connection), "w");
    char line[200];
    while (fgets(line, sizeof line, in)) {
        long number = 0;
        if (sscanf(line, "square %ld", &number) == 1) fprintf(out, "%ld\n", number * number);
        else if (sscanf(line, "bytes %ld", &number) == 1)
            for (long i = 0; i < number; i++) putc(i * 7 % 256, out);
        else if (!strcmp(line, "stop\n")) break;
        fflush(out);
    }
    fputs("bye\n", out);
    fclose(out);
    fclose(in);
    puts("done");
    fflush(stdout);
    while (getchar() != EOF) {}
    return 0;
}
