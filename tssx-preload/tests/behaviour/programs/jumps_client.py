# Echoes with a server that jumps out of its calls, each time it says "go on".
import socket, sys
def connected():
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(sys.argv[1])
    return connection
def whole(connection, size):
    text = b""
    while len(text) < size:
        part = connection.recv(size - len(text))
        if not part:
            return text
        text += part
    return text
def echo(connection, number):
    line = b"line %010d\n" % number
    connection.sendall(line)
    return whole(connection, 16) == line
connection = connected()
print([echo(connection, number) for number in range(20)])
for number in range(18):
    print(whole(connection, 5), echo(connection, number))
late = connected()
connection.sendall(b"the last 16 byte")
late.sendall(b"late")
print("done", flush=True)
sys.stdin.read()
