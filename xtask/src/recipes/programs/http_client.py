# Asks nginx for PHP's answers on one kept connection and checks each. Arguments: the port on 127.0.0.1, how many requests, and how
# many milliseconds to wait between them. Prints how many requests a second.
import http.client, sys, time
port, many, pause = (int(word) for word in sys.argv[1:4])
connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
start = time.monotonic()
for number in range(many):
    times = number * 7919 % 200
    connection.request("GET", f"/page.php?number={number}&times={times}")
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200 or body != b"%d;" % number * (times + 1):
        sys.exit(f"request {number}: {answer.status}, {body[:80]!r}")
    if pause:
        time.sleep(pause / 1000)
print("rate", many / (time.monotonic() - start))
