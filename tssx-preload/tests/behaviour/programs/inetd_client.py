# Talks to the programs that inetd_server.c starts.
import socket
import sys

BLOCK = bytes(i * 7 % 251 for i in range(100000))


def opened():
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(sys.argv[1])
    for round in range(24):
        connection.sendall(bytes([round]))
        assert connection.recv(1) == bytes([round])
    return connection


def whole(connection, size):
    text = b""
    while len(text) < size:
        piece = connection.recv(size - len(text))
        if not piece:
            break
        text += piece
    return text


def lines(connection, count):
    text = b""
    while text.count(b"\n") < count:
        piece = connection.recv(1000)
        if not piece:
            break
        text += piece
    return sorted(text.decode().splitlines())


def serve(connection):
    connection.sendall(b"the first line\n")
    print(lines(connection, 1))
    connection.sendall(b"word 42\n")
    # Standard error has no buffer, standard output has.
    print(lines(connection, 1))
    connection.sendall(b"more\n")
    print(lines(connection, 2))
    connection.sendall(BLOCK)
    print(whole(connection, len(BLOCK)) == BLOCK)
    connection.shutdown(socket.SHUT_WR)
    print(lines(connection, 9))


def all_at_once(connection):
    connection.sendall(b"c\nb\na\n")
    connection.shutdown(socket.SHUT_WR)
    print(whole(connection, 10000))


for talk in (serve, serve, all_at_once, all_at_once, all_at_once, serve):
    connection = opened()
    talk(connection)
    connection.close()
# The server's own process becomes the program.
connection = opened()
serve(connection)
print("done", flush=True)
sys.stdin.read()
