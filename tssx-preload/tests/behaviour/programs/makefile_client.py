# Asks a line server and prints what it said.
import socket, sys
connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
connection.connect(sys.argv[1])
with connection, connection.makefile("rwb") as file:
    for number in range(60):
        file.write(b"square %d\n" % number)
        file.flush()
        print(number, int(file.readline()))
    for size in (1, 100, 5000, 300000):
        file.write(b"bytes %d\n" % size)
        file.flush()
        print(size, file.read(size) == bytes(i * 7 % 256 for i in range(size)))
    file.write(b"stop\n")
    file.flush()
    print(file.readline(), file.read())
print("done", flush=True)
sys.stdin.read()
