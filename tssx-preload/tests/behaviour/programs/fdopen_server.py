# The line server of makefile_server.py over os.fdopen: Python's own buffering on read(2) and write(2).
import os, socket, sys
listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
listener.bind(sys.argv[1])
listener.listen()
print("ready", flush=True)
connection, _ = listener.accept()
number = connection.detach()
reader, writer = os.fdopen(number, "rb"), os.fdopen(os.dup(number), "wb")
for line in reader:
    word, _, number = line.decode().strip().partition(" ")
    if word == "square":
        writer.write(b"%d\n" % int(number) ** 2)
    elif word == "bytes":
        writer.write(bytes(i * 7 % 256 for i in range(int(number))))
    elif word == "stop":
        break
    writer.flush()
writer.write(b"bye\n")
writer.close()
reader.close()
print("done", flush=True)
sys.stdin.read()
