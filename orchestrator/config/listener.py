"""The address that HTTP listens on: the API's, and that of a worker's metrics."""

import socket


def bind(host: str, port: int) -> socket.socket:
    """Bind the address before anything else starts. Raises ``OSError`` when it cannot be bound."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    # The protocol must be named: asyncio sets TCP_NODELAY only where it reads IPPROTO_TCP. Without
    # it a body waits behind its head for the client's delayed acknowledgement, some 40 ms.
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener
