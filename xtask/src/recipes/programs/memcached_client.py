# Sets and gets values of many sizes on one connection, and checks each reply. Prints how many commands a second.
import socket, sys, time
connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
connection.connect(sys.argv[1])
many = int(sys.argv[2])
start, done, number = time.monotonic(), 0, 0
def ask(command, right):
    connection.sendall(command)
    got = b""
    while len(got) < len(right):
        some = connection.recv(65536)
        if not some:
            sys.exit(f"command {done}: the connection ended")
        got += some
    if got != right:
        sys.exit(f"command {done}: {got[:80]!r} instead of {right[:80]!r}")
while done < many:
    number += 1
    key = b"key:%d" % (number % 1000)
    value = (b"%d;" % number) * (number * 7919 % 40 + (2000 if number % 100 == 0 else 1))
    ask(b"set %b 0 0 %d\r\n%b\r\n" % (key, len(value), value), b"STORED\r\n")
    right = b"VALUE %b 0 %d\r\n%b\r\nEND\r\n" % (key, len(value), value)
    for _ in range(9):
        ask(b"get %b\r\n" % key, right)
    done += 10
print("rate", done / (time.monotonic() - start))
