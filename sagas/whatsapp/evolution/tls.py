"""The trust store for TLS connections, shared by all of them."""

import functools
import ssl

import httpx


@functools.cache
def trusted(trust_env: bool = False) -> ssl.SSLContext:
    """The usual authorities; with ``trust_env`` those that SSL_CERT_FILE or SSL_CERT_DIR name.

    Reading them takes 25 ms, in which nothing else runs. So all clients of a process share one.
    """
    return httpx.create_ssl_context(trust_env=trust_env)
