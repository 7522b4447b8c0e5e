// A reader asleep in read(2), whose signal handler reads from the same stream many times a second, across the end of many rings. Every byte must come
// once, to the one or the other. argv: socket, connections, microseconds between two signals.
#include <sys/time.h>

enum { WARM = 40, BYTES = 260, PASSES_AT = 200, PAD = 254 };
static volatile int fd = -1;
static volatile long sum, count;

static unsigned char value(int index) { return index % 251 + 1; }

static void fail(const char *what, int connection) {
  printf("%s, connection %d, %ld bytes\n", what, connection, count);
  fflush(stdout);
  _exit(1);
}

static void take(unsigned char byte) {
  if (byte == PAD) return;
  sum += byte;
  count++;
  if (byte == 0) fail("a byte that nobody sent", -1);
}

static void handler(int signal) {
  (void)signal;
  int kept = errno;
  unsigned char byte;
  if (fd >= 0 && recv(fd, &byte, 1, MSG_DONTWAIT) == 1) take(byte);
  errno = kept;
}

static void write_all(const struct sockaddr_un *address, int connections) {
  for (int connection = 0; connection < connections; connection++) {
    int to = socket(AF_UNIX, SOCK_STREAM, 0);
    unsigned char byte = 1;
    unsigned random = connection * 7919u + 1;
    if (connect(to, (const struct sockaddr *)address, sizeof *address)) fail("connect", connection);
    for (int round = 0; round < WARM; round++)
      if (write(to, &byte, 1) != 1 || read(to, &byte, 1) != 1) fail("warming up", connection);
    for (int index = 1; index <= BYTES; index++) {
      byte = value(index);
      if (index == PASSES_AT) pass_descriptor(to, byte);
      else if (write(to, &byte, 1) != 1) fail("write", connection);
      random = random * 1103515245u + 12345;
      struct timespec pause = {0, (random >> 20) % 60 * 1000};
      if ((random >> 16) % 3 == 0) nanosleep(&pause, 0);
    }
    // Wakes a reader whose handler took the last, until it says that it is done.
    for (byte = PAD; recv(to, &byte, 1, MSG_DONTWAIT) != 1; byte = PAD, usleep(2000))
      if (write(to, &byte, 1) != 1) fail("write of padding", connection);
    close(to);
  }
  exit(0);
}

int main(int argc, char **argv) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  int connections = argc == 4 ? atoi(argv[2]) : 0;
  struct itimerval timer = {{0, argc == 4 ? atoi(argv[3]) : 0}, {0, 50}}, off = {{0, 0}, {0, 0}};
  if (connections == 0) return 2;
  strncpy(address.sun_path, argv[1], sizeof address.sun_path - 1);
  int listener = socket(AF_UNIX, SOCK_STREAM, 0);
  if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 5)) fail("bind", 0);
  pid_t writer = fork();
  if (writer == 0) write_all(&address, connections);
  struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
  sigaction(SIGALRM, &action, 0);
  long wanted = 0;
  for (int index = 1; index <= BYTES; index++) wanted += value(index);
  for (int connection = 0; connection < connections; connection++) {
    int from = accept(listener, 0, 0);
    unsigned char byte, rest[64];
    for (int round = 0; round < WARM; round++)
      if (read(from, &byte, 1) != 1 || write(from, &byte, 1) != 1) fail("warming up", connection);
    sigset_t alarm, before;
    sigemptyset(&alarm);
    sigaddset(&alarm, SIGALRM);
    time_t start = time(0);
    sum = count = 0;
    fd = from;
    setitimer(ITIMER_REAL, &timer, 0);
    while (count < BYTES) {
      ssize_t got = read(from, &byte, 1);
      sigprocmask(SIG_BLOCK, &alarm, &before);
      if (got != 1) fail("read", connection);
      take(byte);
      if (time(0) - start > 5) fail("bytes are missing", connection);
      sigprocmask(SIG_SETMASK, &before, 0);
    }
    setitimer(ITIMER_REAL, &off, 0);
    fd = -1;
    if (sum != wanted || count != BYTES) fail("other bytes than were sent", connection);
    if (write(from, "x", 1) != 1) fail("write", connection);
    while (read(from, rest, sizeof rest) > 0) {}
    close(from);
  }
  int status;
  waitpid(writer, &status, 0);
  if (status != 0) return 1;
  puts("every byte once");
  return 0;
}
