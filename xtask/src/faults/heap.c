// Preloaded beside the library: each allocation says so by a system call that no kernel has, which whoever traces the process sees, and may
// answer with ENOMEM: then there is no memory.

#include <errno.h>
#include <stddef.h>

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);

static int is_refused(void) {
    long answer = NUMBER;
    __asm__ volatile("syscall" : "+a"(answer) : : "rcx", "r11", "memory");
    return answer == -ENOMEM;
}

#define OR_NULL(allocation)                \
    do {                                   \
        if (!is_refused()) return allocation; \
        errno = ENOMEM;                    \
        return NULL;                       \
    } while (0)

void *malloc(size_t size) { OR_NULL(__libc_malloc(size)); }
void *calloc(size_t count, size_t size) { OR_NULL(__libc_calloc(count, size)); }
void *realloc(void *old, size_t size) { OR_NULL(__libc_realloc(old, size)); }
void *memalign(size_t alignment, size_t size) { OR_NULL(__libc_memalign(alignment, size)); }
void *aligned_alloc(size_t alignment, size_t size) { OR_NULL(__libc_memalign(alignment, size)); }

int posix_memalign(void **place, size_t alignment, size_t size) {
    if (is_refused()) return ENOMEM;
    *place = __libc_memalign(alignment, size);
    return *place ? 0 : ENOMEM;
}
