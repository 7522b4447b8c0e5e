# Talks to spawns_server.c: two lines on a connection of each step's own, and one on a connection beside it.
import socket
import sys


def opened():
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(sys.argv[1])
    for round in range(24):
        connection.sendall(bytes([round]))
        assert connection.recv(1) == bytes([round])
    return connection


def line(connection):
    text = b""
    while not text.endswith(b"\n"):
        piece = connection.recv(100 - len(text))
        assert piece, text
        text += piece
    return text.decode().rstrip()


beside = opened()
for step in range(16):
    connection = opened()
    connection.sendall(b"question %d\n" % step)
    print(step, line(connection))
    connection.sendall(b"and %d\n" % step)
    print(step, line(connection))
    beside.sendall(b"beside %d\n" % step)
    print(step, line(beside))
    print("end", connection.recv(100))
    connection.close()
print("end", beside.recv(100))
print("done", flush=True)
sys.stdin.read()
