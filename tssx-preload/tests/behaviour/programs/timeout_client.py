# Uses settimeout (Python then polls before each call), sendall, recv_into, and shutdown.
import socket, sys, threading
connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
connection.settimeout(20)
connection.connect(sys.argv[1])
for round in range(60):
    message = bytes([round]) * 64
    connection.sendall(message)
    back = b""
    while len(back) < 64:
        back += connection.recv(64 - len(back))
    print(round, back == message)
connection.settimeout(0.05)
try:
    print(connection.recv(1))
except TimeoutError as error:
    print("timeout", error)
connection.settimeout(20)
big = bytes(i * 13 % 256 for i in range(2000000))
writer = threading.Thread(target=connection.sendall, args=(big,))
writer.start()
into, got = bytearray(len(big)), 0
while got < len(big):
    got += connection.recv_into(memoryview(into)[got:])
writer.join()
print("big", into == big)
connection.setblocking(False)
try:
    connection.recv(1)
except BlockingIOError as error:
    print("would block", error.errno)
connection.setblocking(True)
connection.shutdown(socket.SHUT_WR)
print("end", connection.recv(1))
connection.close()
print("done", flush=True)
sys.stdin.read()
