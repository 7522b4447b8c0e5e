"""Threads that ask gunicorn over its Unix socket, and check each answer; with a connection kept, or one for each request."""

import http.client
import socket
import sys
import threading

path, way, requests = sys.argv[1], sys.argv[2], int(sys.argv[3])
CLIENTS = 4


class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(20)
        self.sock.connect(path)


def sizes(number):
    scale = 60 if number % 16 == 0 else 1
    return number * 7919 % 1500 * scale, number * 104729 % 400 * scale


def ask(connection, number):
    sent, times = sizes(number)
    body = bytes((number + place * 31) % 256 for place in range(256)) * (sent // 256 + 1)
    body = body[:sent]
    connection.request("POST", f"/?number={number}&times={times}", body)
    response = connection.getresponse()
    answer = response.read()
    if response.status != 200 or answer != body[::-1] + f"{number};".encode() * times:
        raise ValueError(f"request {number}: status {response.status}, {len(answer)} bytes, wrong answer")


def client(first, right, wrong):
    try:
        connection = Connection("tests")
        for number in range(first, requests, CLIENTS):
            ask(connection, number)
            right.append(number)
            if way == "each":
                connection.close()
                connection = Connection("tests")
        connection.close()
    except Exception as error:
        wrong.append(f"after {len(right)} answers: {error!r}")


right, wrong = [], []
threads = [threading.Thread(target=client, args=(first, right, wrong)) for first in range(CLIENTS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for line in wrong:
    print(line)
print("right", len(right))
sys.exit(bool(wrong))
