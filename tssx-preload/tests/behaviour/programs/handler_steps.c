// A signal handler that reads the stream that its thread reads, run at each instruction of that read in turn: for every number of instructions from
// a start a connection of its own, whose reader is stepped so far and given the signal there. Every byte must come once, to the one or the other.
// argv: socket, start (asleep, before or meanwhile), bytes that the handler takes at most, bytes before the one with a descriptor, which ends the ring, the
// first byte, the first number of instructions, and how many more each time.
#include <sched.h>
#include <sys/ptrace.h>
#include <sys/user.h>

enum { WARM = 6, BYTES = 3, PAD = 254, MOST_STEPS = 5000 };
static volatile int fd = -1, takes;
static volatile int count;
static volatile unsigned char seen[64];
static char *start;
static int before_end, first;
static pid_t reader;
extern char __executable_start, etext;

static void fail(const char *what, int trial) {
  printf("%s, trial %d, %s: %s\n", what, trial, start, strerror(errno));
  fflush(stdout);
  if (reader) kill(reader, SIGKILL);
  _exit(1);
}

// ---- the reader

static void take(unsigned char byte) {
  if (byte == PAD) return;
  if (count < (int)sizeof seen) seen[count++] = byte;
}

static void handler(int signal) {
  (void)signal;
  int kept = errno;
  unsigned char byte;
  for (int turn = 0; turn < takes && fd >= 0 && recv(fd, &byte, 1, MSG_DONTWAIT) == 1; turn++) take(byte);
  errno = kept;
}

static void check(int trial) {
  int times[256] = {0};
  for (int index = 0; index < count; index++) times[seen[index]]++;
  for (int value = 0; value < 256; value++)
    if (times[value] != (value >= first && value < first + BYTES)) {
      printf("byte %d came %d times, step %d, %s, handler takes %d, %d before the end; in turn:", value, times[value], trial, start, takes, before_end);
      for (int index = 0; index < count; index++) printf(" %d", seen[index]);
      puts("");
      fflush(stdout);
      _exit(1);
    }
}

static void read_all(int listener) {
  struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
  sigaction(SIGUSR1, &action, 0);
  sigset_t blocked;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGUSR1);
  for (int trial = 0;; trial++) {
    unsigned char byte, go, rest[64];
    int from = accept(listener, 0, 0);
    if (from < 0) fail("accept", trial);
    for (int round = 0; round < WARM; round++)
      if (read(from, &byte, 1) != 1 || write(from, &byte, 1) != 1) fail("warming up", trial);
    count = 0;
    fd = from;
    raise(SIGTRAP);
    while (count < BYTES) {
      if (read(from, &go, 1) != 1) fail("read", trial);
      sigprocmask(SIG_BLOCK, &blocked, 0);
      take(go);
      sigprocmask(SIG_UNBLOCK, &blocked, 0);
    }
    fd = -1;
    check(trial);
    if (write(from, "x", 1) != 1) fail("write", trial);
    while (read(from, rest, sizeof rest) > 0) {}
    close(from);
  }
}

// ---- the writer, which steps the reader

static void send_all(int to) {
  for (int index = 0; index < BYTES; index++) {
    unsigned char byte = first + index;
    if (index == before_end) pass_descriptor(to, byte);
    else if (write(to, &byte, 1) != 1) fail("write", index);
  }
}

// Waits for a stop; 0 if the reader sleeps in the kernel instead, -1 if it is over.
static int stopped(int trial) {
  int status;
  for (int turn = 0;; turn++) {
    pid_t pid = waitpid(reader, &status, WNOHANG | __WALL);
    if (pid < 0) fail("waitpid", trial);
    if (pid > 0 && WIFSTOPPED(status)) return 1;
    if (pid > 0) return -1;
    if (turn > 200) {
      char path[64], state = 0;
      sprintf(path, "/proc/%d/stat", reader);
      FILE *file = fopen(path, "r");
      if (!file || fscanf(file, "%*d (%*[^)]) %c", &state) != 1) fail(path, trial);
      fclose(file);
      if (state == 'S') {
        if (turn > 400) return 0;
        usleep(50);
      }
      if (turn > 100000) fail("the reader neither stops nor sleeps", trial);
      sched_yield();
    }
  }
}

static void resume(int how, int trial) {
  if (ptrace(how, reader, 0, 0)) fail("ptrace", trial);
}

static void await_stop(int trial) {
  int state, turns = 0;
  while ((state = stopped(trial)) == 0) // asleep as long as it has not had the CPU
    if (++turns > 1000) fail("the reader does not stop", trial);
  if (state < 0) fail("the reader has ended", trial);
}

static void interrupt_sleep(int trial) {
  if (ptrace(PTRACE_INTERRUPT, reader, 0, 0)) fail("ptrace", trial);
  await_stop(trial);
}

static void go_to_sleep(int trial) {
  resume(PTRACE_CONT, trial);
  if (stopped(trial) != 0) fail("the reader does not sleep", trial);
  interrupt_sleep(trial);
}

// Steps the reader; how far it came, or -1 if it was back in the program, or slept, before.
static int step(int most, int trial) {
  int outside = 1, returns = strcmp(start, "asleep") == 0 ? 1 : 2; // from raise(3), and from read(2)
  unsigned long last = 0;
  for (int steps = 0; steps < most;) {
    struct user_regs_struct registers;
    resume(PTRACE_SINGLESTEP, trial);
    int state = stopped(trial);
    if (state < 0) fail("the reader has ended", trial);
    if (state == 0) {
      interrupt_sleep(trial);
      return -1;
    }
    if (ptrace(PTRACE_GETREGS, reader, 0, &registers)) fail("registers", trial);
    int inside = registers.rip >= (unsigned long)&__executable_start && registers.rip < (unsigned long)&etext;
    if (outside && inside && --returns == 0) return -1;
    outside = !inside;
    steps += registers.rip != last; // a string instruction is stepped a byte at a time
    last = registers.rip;
  }
  return most;
}

static int run(const struct sockaddr_un *address, int trial) {
  unsigned char byte = 9;
  int to = socket(AF_UNIX, SOCK_STREAM, 0);
  if (connect(to, (const struct sockaddr *)address, sizeof *address)) fail("connect", trial);
  for (int round = 0; round < WARM; round++)
    if (write(to, &byte, 1) != 1 || read(to, &byte, 1) != 1) fail("warming up", trial);
  await_stop(trial);
  if (strcmp(start, "asleep") == 0) go_to_sleep(trial);
  if (strcmp(start, "meanwhile") != 0) send_all(to);
  int steps = step(trial, trial);
  if (strcmp(start, "meanwhile") == 0) send_all(to);
  if (kill(reader, SIGUSR1)) fail("kill", trial);
  resume(PTRACE_CONT, trial);
  // Wakes a reader whose handler took the last, until it says that it is done.
  for (time_t began = time(0); recv(to, &byte, 1, MSG_DONTWAIT) != 1;) {
    int status;
    pid_t pid = waitpid(reader, &status, WNOHANG | __WALL);
    if (pid > 0 && !WIFSTOPPED(status)) return -2;
    if (pid > 0 && ptrace(PTRACE_CONT, reader, 0, WSTOPSIG(status) == SIGUSR1 ? SIGUSR1 : 0)) fail("ptrace", trial);
    if (time(0) - began > 5) fail("bytes are missing", trial);
    usleep(100);
    byte = PAD;
    if (recv(to, &byte, 1, MSG_DONTWAIT | MSG_PEEK) != 1) { byte = PAD; if (write(to, &byte, 1) != 1) fail("padding", trial); }
  }
  close(to);
  return steps;
}

int main(int argc, char **argv) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (argc != 8) return 2;
  strncpy(address.sun_path, argv[1], sizeof address.sun_path - 1);
  start = argv[2], takes = atoi(argv[3]), before_end = atoi(argv[4]), first = atoi(argv[5]);
  int trial = atoi(argv[6]), stride = atoi(argv[7]), steps;
  int listener = socket(AF_UNIX, SOCK_STREAM, 0);
  if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 5)) fail("bind", 0);
  pid_t child = fork();
  if (child == 0) {
    raise(SIGSTOP);
    read_all(listener);
  }
  reader = child;
  int status;
  if (waitpid(reader, &status, WUNTRACED) != reader || ptrace(PTRACE_SEIZE, reader, 0, PTRACE_O_EXITKILL)) fail("seize", 0);
  kill(reader, SIGCONT);
  while (stopped(0) == 1) resume(PTRACE_CONT, 0); // until it waits for a connection
  do steps = run(&address, trial); while (steps >= 0 && (trial += stride) < MOST_STEPS);
  if (steps == -2) return 1;
  kill(reader, SIGKILL);
  waitpid(reader, &status, 0);
  if (trial >= MOST_STEPS) fail("the read does not return", trial);
  printf("%d instructions\n", trial);
  puts("every byte once");
  return 0;
}
