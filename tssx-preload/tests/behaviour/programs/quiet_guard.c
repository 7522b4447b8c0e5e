// Preloaded before the library: once armed, any allocation or mapping through libc's names ends the process.

#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static volatile int armed;

void guard_arm(void) { armed = 1; }

static void check(const char *name, size_t length) {
    if (!armed) return;
    armed = 0;
    if (write(1, name, length) < 0) abort();
    abort();
}
#define CHECK(name) check(name "\n", sizeof name)

void *malloc(size_t size) { CHECK("malloc was called"); return __libc_malloc(size); }
void *calloc(size_t count, size_t size) { CHECK("calloc was called"); return __libc_calloc(count, size); }
void *realloc(void *old, size_t size) { CHECK("realloc was called"); return __libc_realloc(old, size); }
void *memalign(size_t alignment, size_t size) { CHECK("memalign was called"); return __libc_memalign(alignment, size); }
void *aligned_alloc(size_t alignment, size_t size) { CHECK("aligned_alloc was called"); return __libc_memalign(alignment, size); }
void free(void *old) { CHECK("free was called"); __libc_free(old); }

void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
    CHECK("mmap was called");
    return (void *)syscall(SYS_mmap, address, length, protection, flags, fd, offset);
}
void *mmap64(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
    CHECK("mmap64 was called");
    return (void *)syscall(SYS_mmap, address, length, protection, flags, fd, offset);
}
