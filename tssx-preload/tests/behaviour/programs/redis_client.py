# Sets and gets values of every size on one connection, one by one and in pipelines, and checks each reply.
import random, socket, sys
connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
connection.connect(sys.argv[1])
file = connection.makefile("rwb")
random.seed(7)
def command(*words):
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words)
def reply():
    line = file.readline()
    if line[:1] == b"$" and line != b"$-1\r\n":
        body = file.read(int(line[1:]) + 2)
        return body[:-2]
    return line
values, right = {}, 0
for number in range(300):
    key = b"key:%d" % number
    values[key] = random.randbytes(random.choice((1, 10, 100, 5000, 200000 if number % 50 == 0 else 64)))
    file.write(command(b"SET", key, values[key]))
    file.flush()
    right += reply() == b"+OK\r\n"
print("set", right)
right = 0
for key, value in values.items():
    file.write(command(b"GET", key))
    file.flush()
    right += reply() == value
print("got", right)
right = 0
for start in range(0, 300, 16):
    keys = [b"key:%d" % number for number in range(start, min(start + 16, 300))]
    file.write(b"".join(command(b"GET", key) for key in keys))
    file.flush()
    right += sum(reply() == values[key] for key in keys)
print("got in pipelines", right)
file.write(command(b"GET", b"no such key") + command(b"DBSIZE") + command(b"NONSENSE"))
file.flush()
print(reply(), reply(), reply()[:4])
print("done", flush=True)
sys.stdin.read()
