"""A server that answers every request with the same bytes: what a load generator gets from it is the most that it can measure."""

from __future__ import annotations

import select
import socket
import sys

# As long as the answer to a start.
_BODY = b'{"pid":4242,"id":"4242","status":"running","padding":"' + b"x" * 330 + b'"}'
_ANSWER = (
    b"HTTP/1.1 201 Created\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
)


def serve(port: int) -> None:
    """Serve on the loopback until killed. Every piece that comes is taken for one request."""
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    connections: dict[int, socket.socket] = {}
    while True:
        for descriptor, _ in epoll.poll():
            if descriptor == listener.fileno():
                connection, _ = listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                epoll.register(connection, select.EPOLLIN)
                connections[connection.fileno()] = connection
                continue
            try:
                alive = bool(connections[descriptor].recv(65536))
                if alive:
                    connections[descriptor].send(_ANSWER)
            except ConnectionError:
                alive = False
            if not alive:
                connections.pop(descriptor).close()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
