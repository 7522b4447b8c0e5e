/* A super-server of the old school: each connection becomes 0, 1 and 2 of another program, which uses it by stdio. In turn the program is this one
 * again with the library, this one without, a shell, cat, sort, one that is given the socket that listens, and this process itself. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;
static int listener;
static char *own;

static void fail(const char *what)
{
    perror(what);
    _exit(1);
}

static int opened(int from)
{
    int fd = accept(from, NULL, NULL);
    char byte;
    for (int round = 0; round < 24; round++)
        if (read(fd, &byte, 1) != 1 || write(fd, &byte, 1) != 1)
            fail("warm");
    return fd;
}

/* What the other program does: lines, by every function that a program of this kind uses. */
static int serve(void)
{
    char *line = NULL;
    size_t room = 0;
    char word[100];
    int number;
    if (getline(&line, &room, stdin) < 0)
        return 3;
    printf("line of %zu: %s", strlen(line), line);
    fflush(stdout);
    if (scanf("%99s %d", word, &number) != 2 || getchar() != '\n')
        return 4;
    printf("word %s and number %d\n", word, number);
    fprintf(stderr, "and on standard error\n");
    if (!fgets(word, sizeof word, stdin))
        return 5;
    fputs("once more: ", stdout);
    fputs(word, stdout);
    fflush(stdout);
    static char block[100000];
    if (fread(block, 1, sizeof block, stdin) != sizeof block)
        return 6;
    fwrite(block, 1, sizeof block, stdout);
    fflush(stdout);
    if (fgets(word, sizeof word, stdin) || !feof(stdin))
        return 7;
    puts("bye");
    return 0;
}

static void become(int fd, int close_all, char *const arguments[], char *const environment[])
{
    for (int target = 0; target <= 2; target++)
        if (dup2(fd, target) != target)
            fail("dup2");
    if (close_all)
        closefrom(3);
    else
        close(fd);
    execvpe(arguments[0], arguments, environment);
    _exit(9);
}

static char *const nothing[] = {NULL};
static char *serves[] = {NULL, "x", "serve", NULL};
static char *shells[] = {"sh", "-c", "while read line; do echo \"shell: $line\"; done; echo bye", NULL};
static char *cats[] = {"cat", NULL};
static char *sorts[] = {"sort", NULL};
static char *waits[] = {NULL, "x", "wait", NULL};

int main(int count, char **arguments)
{
    own = arguments[0];
    if (count == 3 && strcmp(arguments[2], "serve") == 0)
        return serve();
    if (count == 3 && strcmp(arguments[2], "wait") == 0) {
        int fd = opened(0);
        for (int target = 0; target <= 2; target++)
            dup2(fd, target);
        close(fd);
        return serve();
    }
    serves[0] = waits[0] = own;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, arguments[1], sizeof address.sun_path - 1);
    listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 5) != 0)
        fail("listen");
    puts("ready");
    fflush(stdout);
    char **const programs[] = {serves, serves, shells, cats, sorts, waits};
    for (int step = 0; step < 6; step++) {
        int fd = step == 5 ? listener : opened(listener);
        pid_t child = fork();
        if (child == 0)
            become(fd, step % 2, programs[step], step == 1 ? nothing : environ);
        if (fd != listener)
            close(fd);
        int status = -1;
        waitpid(child, &status, 0);
        printf("step %d: exit %d\n", step, WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
        fflush(stdout);
    }
    int fd = opened(listener);
    puts("done");
    fflush(stdout);
    become(fd, 1, serves, environ);
}
