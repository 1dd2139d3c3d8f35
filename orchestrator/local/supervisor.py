"""The supervisor: a small process that runs one server while it has owners.

Every owner holds a connection to it. The kernel closes that connection however the owner ends,
`kill -9` included, so no registration can become stale. When the last one is closed, the supervisor
stops the server, removes what was temporary, and ends. It runs in a session of its own: neither
ctrl-C nor a signal to the owner's process group reaches it or the server. If the supervisor itself
is killed, Linux sends the server its quit signal; elsewhere the next start stops the server.

`handle` runs it with nothing but the standard library, so that it starts fast and stays small.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
from typing import Any

from evosaga.orchestrator.local.server_process import Failed, ManagedServer, ServerSpec


class Supervisor:
    """A managed server, and the connections of its owners."""

    def __init__(self, ward: ManagedServer) -> None:
        self.ward = ward
        self.owners: set[socket.socket] = set()

    def obey(self, word: str) -> dict[str, Any]:
        """Carry out an owner's request and return the server's state."""
        try:
            if word == "kill":
                self.ward.kill()
            elif word == "stop":
                self.ward.stop(self.ward.plan.quit_signal)
            else:
                self.ward.start()
        except (Failed, OSError) as failure:
            return {"error": str(failure)}
        return {**self.ward.plan.facts, "pid": self.ward.pid}

    def serve(self, first: socket.socket, listener: socket.socket) -> None:
        """Serve owners, from the first connection to the end of the last one."""
        self.owners.add(first)
        with selectors.DefaultSelector() as ready, socket_of_signals() as signals:
            for known in (first, listener, signals):
                ready.register(known, selectors.EVENT_READ, known)
            self.tell(first, "start")
            while True:
                for key, _ in ready.select():
                    source: socket.socket = key.data
                    if source is signals:
                        signals.recv(64)
                        self.ward.runs()  # reaps it: a dead server must not stay a zombie
                    elif source is listener:
                        owner, _ = listener.accept()
                        self.owners.add(owner)
                        ready.register(owner, selectors.EVENT_READ, owner)
                        self.tell(owner, "start")
                    elif word := heard(source):
                        self.tell(source, word)
                    elif len(self.owners) > 1:
                        self.owners.remove(source)
                        ready.unregister(source)
                        source.close()
                    else:
                        return  # with the last connection open, until all is done

    def tell(self, owner: socket.socket, word: str) -> None:
        answer = json.dumps(self.obey(word)) + "\n"
        with contextlib.suppress(OSError):  # it may be gone; its connection shows that next
            owner.sendall(answer.encode())


def heard(owner: socket.socket) -> str:
    """The word that an owner sent; empty when the owner is gone."""
    try:
        return owner.recv(64).decode().strip()
    except OSError:
        return ""


def socket_of_signals() -> socket.socket:
    """A socket that becomes readable when a child ends; other signals end the supervisor."""

    def leave(*_: object) -> None:
        raise SystemExit(0)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    reader, writer = socket.socketpair()
    for end in (reader, writer):
        end.setblocking(False)
    signal.set_wakeup_fd(writer.detach())
    return reader


def main(first_fd: str, _lock_fd: str) -> None:
    """Run one server. The lock shows that we are alive: it stays open, unused, until we end."""
    if os.fork():
        os._exit(0)  # so that init is our parent, and the first owner may end before us
    os.umask(0o077)
    first = socket.socket(fileno=int(first_fd))
    with first.makefile() as lines:
        guardian = Supervisor(ManagedServer(ServerSpec(**json.loads(lines.readline()))))
    control = guardian.ward.plan.control
    with contextlib.suppress(FileNotFoundError):
        os.unlink(control)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(control)
        listener.listen(64)
        guardian.serve(first, listener)
    except SystemExit:
        pass  # a signal asks us to end
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        listener.close()  # later owners start a supervisor of their own
        os.unlink(control)
        guardian.ward.end()
    # The last owner waits until its connection is closed, and then everything must be over: the
    # kernel closes it after the lock, which has a lower number; Python's own exit would be later.
    os._exit(0)
