/* Reads a file as systemd reads that of a unit's EnvironmentFile=, by systemd's own code: the first argument is its libsystemd-shared, whose
 * load_env_file and env_assignment_is_valid are what its exec_context_load_environment calls. Prints each variable that a program of the unit
 * would get, with a NUL behind it. Status 3: systemd takes nothing of the file. */
#include <dlfcn.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv) {
    void *library = argc == 3 ? dlopen(argv[1], RTLD_NOW) : NULL;
    if (!library) {
        fprintf(stderr, "%s\n", argc == 3 ? dlerror() : "LIBRARY FILE");
        return 2;
    }
    int (*load)(FILE *, const char *, char ***) = (int (*)(FILE *, const char *, char ***))dlsym(library, "load_env_file");
    bool (*valid)(const char *) = (bool (*)(const char *))dlsym(library, "env_assignment_is_valid");
    if (!load || !valid) {
        fprintf(stderr, "this libsystemd-shared has not the functions that are known\n");
        return 2;
    }
    char **variables = NULL;
    int result = load(NULL, argv[2], &variables);
    if (result < 0) {
        fprintf(stderr, "%s\n", strerror(-result));
        return 3;
    }
    for (; variables && *variables; variables++)
        if (valid(*variables))
            fwrite(*variables, 1, strlen(*variables) + 1, stdout);
    return 0;
}
