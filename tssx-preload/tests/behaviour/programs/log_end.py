# One end of a connection: log_end.py server|client SOCKET. It is warmed up, passes a descriptor, and says which descriptors it
# had before and after.
import os, socket, sys
open_now = lambda: sorted(os.listdir("/proc/self/fd"))
role, path = sys.argv[1:]
made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
if role == "server":
    made.bind(path)
    made.listen()
    print("ready", flush=True)
    connection, _ = made.accept()
else:
    made.connect(path)
    connection = made
before = open_now()
os.chdir("/")
for round in range(200):
    if role == "client":
        connection.sendall(b"x" * 64)
    got = 0
    while got < 64:
        got += len(connection.recv(64 - got))
    if role == "server":
        connection.sendall(b"x" * 64)
print("same descriptors", open_now() == before)
if role == "client":
    socket.send_fds(connection, [b"d"], [0])
    print("end", connection.recv(1))
else:
    data, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
    print(data, len(descriptors))
    os.close(descriptors[0])
print("same descriptors", open_now() == before)
connection.close()
