# Echoes to one client, non-blocking, by selectors.DefaultSelector (epoll).
import selectors, socket, sys
selector = selectors.DefaultSelector()
listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
listener.bind(sys.argv[1])
listener.listen()
listener.setblocking(False)
selector.register(listener, selectors.EVENT_READ)
print("ready", flush=True)
pending, served, open_connections = {}, 0, None
while open_connections != 0:
    for key, mask in selector.select(timeout=20):
        if key.fileobj is listener:
            connection, _ = listener.accept()
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ)
            pending[connection] = b""
            open_connections = (open_connections or 0) + 1
            continue
        connection = key.fileobj
        if mask & selectors.EVENT_READ:
            data = connection.recv(65536)
            if not data:
                selector.unregister(connection)
                connection.close()
                open_connections -= 1
                continue
            served += len(data)
            pending[connection] += data
        if pending[connection]:
            try:
                sent = connection.send(pending[connection])
            except BlockingIOError:
                sent = 0
            pending[connection] = pending[connection][sent:]
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if pending[connection] else 0)
        selector.modify(connection, wanted)
print("served", served)
print("done", flush=True)
sys.stdin.read()
