/* A server that starts other programs in every way libc has, while it holds accelerated connections. In each step a child answers the first
 * line (or nobody does, and the parent must), and the parent the second: whatever the child did, the parent's connection is as it was. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;
static int listener, beside;

static void fail(const char *what)
{
    perror(what);
    _exit(1);
}

static void answer(int fd, const char *who)
{
    char line[100];
    size_t length = 0;
    while (length < sizeof line - 1 && read(fd, line + length, 1) == 1 && line[length] != '\n')
        length++;
    line[length] = 0;
    char reply[200];
    int count = snprintf(reply, sizeof reply, "%s got: %s\n", who, line);
    if (write(fd, reply, count) != count)
        fail("write");
}

/* As the client's warm(): enough traffic for an upgrade. */
static int opened(void)
{
    int fd = accept(listener, NULL, NULL);
    char byte;
    for (int round = 0; round < 24; round++)
        if (read(fd, &byte, 1) != 1 || write(fd, &byte, 1) != 1)
            fail("warm");
    return fd;
}

static void ended(const char *what, pid_t child)
{
    int status = -1;
    if (waitpid(child, &status, 0) != child)
        fail("waitpid");
    printf("%s: exit %d\n", what, WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
    fflush(stdout);
}

static const char *shell(const char *format, ...)
{
    static char command[200];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(command, sizeof command, format, arguments);
    va_end(arguments);
    return command;
}

#define TALK "read line; echo child got: $line"
#define TALK_ON "read line <&%d; echo child got: $line >&%d"

static void nobody(int fd)
{
    answer(fd, "parent");
}

static void vfork_and_exit(int fd)
{
    pid_t child = vfork();
    if (child == 0) {
        close(fd);
        close(beside);
        _exit(3);
    }
    ended("vfork", child);
    answer(fd, "parent");
}

static void vfork_and_exec(int fd)
{
    pid_t child = vfork();
    if (child == 0) {
        dup2(fd, 0);
        dup2(fd, 1);
        closefrom(3);
        execlp("sh", "sh", "-c", TALK, (char *)NULL);
        _exit(9);
    }
    ended("vfork and exec", child);
}

static void vfork_and_a_program_that_is_not(int fd)
{
    pid_t child = vfork();
    if (child == 0) {
        close(beside);
        execlp("/nothing/of/the/kind", "nothing", (char *)NULL);
        _exit(errno == ENOENT ? 7 : 8);
    }
    ended("vfork and a failing exec", child);
    answer(fd, "parent");
}

static void spawn(const char *what, const char *command, posix_spawn_file_actions_t *actions)
{
    pid_t child;
    char *arguments[] = {"sh", "-c", (char *)command, NULL};
    int result = posix_spawnp(&child, "sh", actions, NULL, arguments, environ);
    if (result != 0) {
        printf("%s: error %d\n", what, result);
        return;
    }
    ended(what, child);
}

static void spawn_with_actions(int fd)
{
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, fd, 0);
    posix_spawn_file_actions_adddup2(&actions, fd, 1);
    posix_spawn_file_actions_addclose(&actions, fd);
    posix_spawn_file_actions_addclose(&actions, beside);
    spawn("posix_spawn", TALK, &actions);
    posix_spawn_file_actions_destroy(&actions);
}

static void spawn_that_inherits(int fd)
{
    spawn("posix_spawn without actions", shell(TALK_ON, fd, fd), NULL);
}

static void spawn_that_closes(int fd)
{
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addclose(&actions, fd);
    posix_spawn_file_actions_addclosefrom_np(&actions, 3);
    spawn("posix_spawn that closes", "exit 4", &actions);
    posix_spawn_file_actions_destroy(&actions);
    answer(fd, "parent");
}

static void spawn_of_nothing(int fd)
{
    char *arguments[] = {"nothing", NULL};
    pid_t child;
    printf("posix_spawn of nothing: %d\n", posix_spawn(&child, "/nothing/of/the/kind", NULL, NULL, arguments, environ));
    answer(fd, "parent");
}

static void spawn_beside_close_on_exec(int fd)
{
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    spawn("posix_spawn beside close-on-exec", shell("true <&%d 2>/dev/null || exit 6", fd), NULL);
    answer(fd, "parent");
}

static void by_system(int fd)
{
    printf("system: %d\n", WEXITSTATUS(system(shell(TALK_ON "; exit 5", fd, fd))));
}

static void by_popen_for_reading(int fd)
{
    char line[100] = "";
    FILE *pipe = popen(shell(TALK_ON "; echo and more", fd, fd), "r");
    if (!fgets(line, sizeof line, pipe))
        fail("fgets");
    printf("popen: %d %s", WEXITSTATUS(pclose(pipe)), line);
}

static void by_popen_for_writing(int fd)
{
    char byte = 0;
    while (byte != '\n' && read(fd, &byte, 1) == 1)
        ;
    FILE *pipe = popen(shell("cat >&%d", fd), "w");
    fputs("child got: what popen was given\n", pipe);
    printf("popen for writing: %d\n", WEXITSTATUS(pclose(pipe)));
}

static int borrowed_exit(void *argument)
{
    close(*(int *)argument);
    close(beside);
    close_range(3, 100, 0);
    _exit(3);
}

static int borrowed_exec(void *argument)
{
    int fd = *(int *)argument;
    dup2(fd, 0);
    dup2(fd, 1);
    close_range(3, 100, 0);
    int other = open("/dev/null", O_RDWR);
    fcntl(other, F_SETFD, 0);
    execlp("sh", "sh", "-c", TALK, (char *)NULL);
    _exit(9);
}

static void cloned(const char *what, int (*body)(void *), int fd)
{
    static char stack[256 * 1024] __attribute__((aligned(64)));
    ended(what, clone(body, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, &fd));
}

static void clone_and_exit(int fd)
{
    cloned("clone that shares memory", borrowed_exit, fd);
    answer(fd, "parent");
}

static void clone_and_exec(int fd)
{
    cloned("clone that shares memory, and exec", borrowed_exec, fd);
}

static void fork_and_serve(int fd)
{
    pid_t child = fork();
    if (child == 0) {
        execlp("sh", "sh", "-c", shell(TALK_ON, fd, fd), (char *)NULL);
        _exit(9);
    }
    ended("fork and exec", child);
}

int main(int count, char **arguments)
{
    static void (*const steps[])(int) = {
        nobody, vfork_and_exit, vfork_and_exec, vfork_and_a_program_that_is_not, spawn_with_actions, spawn_that_inherits,
        spawn_that_closes, spawn_of_nothing, spawn_beside_close_on_exec, by_system, by_popen_for_reading, by_popen_for_writing,
        clone_and_exit, clone_and_exec, fork_and_serve, nobody,
    };
    if (count != 2)
        return 2;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, arguments[1], sizeof address.sun_path - 1);
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 5) != 0)
        fail("listen");
    puts("ready");
    fflush(stdout);
    beside = opened();
    for (size_t step = 0; step < sizeof steps / sizeof *steps; step++) {
        int fd = opened();
        steps[step](fd);
        answer(fd, "then parent");
        answer(beside, "beside");
        close(fd);
        fflush(stdout);
    }
    printf("system without a command: %d\n", system(NULL) != 0);
    close(beside);
    puts("done");
    fflush(stdout);
    getchar();
    return 0;
}
