# Serves line requests over buffered files: `square N`, `bytes N`, `stop`.
import socket, sys
listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
listener.bind(sys.argv[1])
listener.listen()
print("ready", flush=True)
connection, _ = listener.accept()
with connection, connection.makefile("rwb") as file:
    for line in file:
        word, _, number = line.decode().strip().partition(" ")
        if word == "square":
            file.write(b"%d\n" % int(number) ** 2)
        elif word == "bytes":
            file.write(bytes(i * 7 % 256 for i in range(int(number))))
        elif word == "stop":
            break
        file.flush()
    file.write(b"bye\n")
print("served", listener.fileno() > 0)
print("done", flush=True)
sys.stdin.read()
