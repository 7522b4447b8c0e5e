"""Both ends of some connections: three that are open at once, and one more once the first is closed."""

import socket
import sys
import threading

ROUNDS = 400


def serve(connection):
    while data := connection.recv(4096):
        connection.sendall(data)
    connection.close()


def exchange(connection, letter):
    for length in range(1, ROUNDS):
        message = letter * length
        connection.sendall(message)
        answer = b""
        while len(answer) < length:
            answer += connection.recv(length)
        assert answer == message


def connect(path):
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    return connection


role, path = sys.argv[1:]
if role == "server":
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    print("ready", flush=True)
    for _ in range(4):
        threading.Thread(target=serve, args=(listener.accept()[0],)).start()
else:
    first, *others = (connect(path) for _ in range(3))
    for connection, letter in zip((first, *others), (b"a", b"b", b"c")):
        exchange(connection, letter)
    first.shutdown(socket.SHUT_WR)
    assert first.recv(1) == b""
    first.close()
    last = connect(path)
    for connection, letter in zip((last, *others), (b"d", b"e", b"f")):
        exchange(connection, letter)
    print("all answers right")
