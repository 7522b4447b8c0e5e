/* A client of an echo server whose bytes go as the first argument says: "libc", "raw" (system calls past libc), "uring" (an io_uring) or
 * "datagram" (each sent and forgotten). Each line of its input is a task: it sends 2000 times 64 bytes and prints "done". */
#include <errno.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <linux/un.h>

#ifndef RAW
#include <sys/socket.h>
#else
/* So that no name of libc's but syscall is there to be interposed. */
#define AF_UNIX 1
#define SOCK_STREAM 1
#define SOCK_DGRAM 2
static int socket(int domain, int type, int protocol) { return (int)syscall(SYS_socket, domain, type, protocol); }
static int connect(int fd, const void *address, unsigned length) { return (int)syscall(SYS_connect, fd, address, length); }
#define write(fd, bytes, count) syscall(SYS_write, fd, bytes, count)
#define read(fd, bytes, count) syscall(SYS_read, fd, bytes, count)
#endif

enum { SIZE = 64, COUNT = 2000 };

static void die(const char *what) {
    printf("%s: %s\n", what, strerror(errno));
    exit(1);
}

struct ring {
    int fd;
    unsigned *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_mask;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
};

static struct ring setup(void) {
    struct io_uring_params params = {0};
    struct ring ring = {.fd = (int)syscall(SYS_io_uring_setup, 4, &params)};
    if (ring.fd < 0)
        die("io_uring_setup");
    size_t sq_size = params.sq_off.array + params.sq_entries * sizeof(unsigned);
    size_t cq_size = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    int access = PROT_READ | PROT_WRITE, kind = MAP_SHARED | MAP_POPULATE;
    char *sq = mmap(NULL, sq_size, access, kind, ring.fd, IORING_OFF_SQ_RING);
    char *cq = mmap(NULL, cq_size, access, kind, ring.fd, IORING_OFF_CQ_RING);
    ring.sqes = mmap(NULL, params.sq_entries * sizeof(struct io_uring_sqe), access, kind, ring.fd, IORING_OFF_SQES);
    if (sq == MAP_FAILED || cq == MAP_FAILED || ring.sqes == MAP_FAILED)
        die("mmap");
    ring.sq_tail = (unsigned *)(sq + params.sq_off.tail);
    ring.sq_mask = (unsigned *)(sq + params.sq_off.ring_mask);
    ring.sq_array = (unsigned *)(sq + params.sq_off.array);
    ring.cq_head = (unsigned *)(cq + params.cq_off.head);
    ring.cq_mask = (unsigned *)(cq + params.cq_off.ring_mask);
    ring.cqes = (struct io_uring_cqe *)(cq + params.cq_off.cqes);
    return ring;
}

/* One operation, submitted and waited for. */
static long operate(struct ring *ring, int opcode, int fd, char *bytes, unsigned count) {
    unsigned tail = *ring->sq_tail, index = tail & *ring->sq_mask;
    struct io_uring_sqe *entry = &ring->sqes[index];
    memset(entry, 0, sizeof *entry);
    entry->opcode = (unsigned char)opcode;
    entry->fd = fd;
    entry->addr = (unsigned long)bytes;
    entry->len = count;
    ring->sq_array[index] = index;
    __atomic_store_n(ring->sq_tail, tail + 1, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, ring->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
        die("io_uring_enter");
    unsigned head = *ring->cq_head;
    long result = ring->cqes[head & *ring->cq_mask].res;
    __atomic_store_n(ring->cq_head, head + 1, __ATOMIC_RELEASE);
    return result;
}

int main(int argc, char **argv) {
    if (argc != 3)
        return 2;
    const char *how = argv[1];
    int datagram = strcmp(how, "datagram") == 0, uring = strcmp(how, "uring") == 0;
    struct ring ring = {0};
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char bytes[SIZE] = {0};
    strncpy(address.sun_path, argv[2], sizeof address.sun_path - 1);
    int fd = socket(AF_UNIX, datagram ? SOCK_DGRAM : SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (void *)&address, sizeof address) != 0)
        die("connect");
    if (uring)
        ring = setup();
    puts("ready");
    fflush(stdout);
    for (int c = getchar(); c != EOF; c = getchar()) {
        if (c != '\n')
            continue;
        for (int i = 0; i < COUNT; i++) {
            if ((uring ? operate(&ring, IORING_OP_SEND, fd, bytes, SIZE) : (long)write(fd, bytes, SIZE)) != SIZE)
                die("send");
            for (long got = 0; !datagram && got < SIZE;) {
                long more = uring ? operate(&ring, IORING_OP_RECV, fd, bytes, SIZE) : (long)read(fd, bytes, SIZE);
                if (more <= 0)
                    die("receive");
                got += more;
            }
        }
        puts("done");
        fflush(stdout);
    }
    return 0;
}
