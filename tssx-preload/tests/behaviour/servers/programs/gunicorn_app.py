"""What was sent, backwards, and then the request's number as often as it asks for."""

from urllib.parse import parse_qs


def app(environ, start_response):
    asked = parse_qs(environ["QUERY_STRING"])
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    answer = body[::-1] + (asked["number"][0] + ";").encode() * int(asked["times"][0])
    start_response("200 OK", [("Content-Type", "application/octet-stream"), ("Content-Length", str(len(answer)))])
    return [answer]
