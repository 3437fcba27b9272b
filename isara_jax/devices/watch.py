"""How the processes of one run learn that one of them has ended, and end with it.

Each keeps a connection with the first, which closes when a process dies, whatever of; before it
ends by itself it says why. Why JAX's coordination service, which watches too, is not enough, with
jaxlib 0.10.2 on one machine:

| | the service | a connection |
|---|---|---|
| a process is killed: noticed after | its heartbeat's time-out and a second (5 s: 6 s) | 0.03 s |
| how the others end | SIGABRT (134) with 20 lines and a stack, nothing tidied up | as they like |
| what they say | a number; of the first process "network issues" or it | who, where and why |

Its callback would replace that end, but cannot be written in Python (`std::bad_cast`), and where it
is told that tasks may fail (`jax_enable_recoverability`) the first one's death does the same. A
process that is frozen, whose connection stays open, is left to it.

Nobody else has a say: a connection counts that shows the secret which the first process has put
into the service's store, strangers are dropped unheard, and nothing listens once all are there.
"""

import contextlib
import json
import re
import secrets
import selectors
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TextIO

from isara_jax import config
from isara_jax.shell import endings

_FAILURE_SECONDS = 2  # in which the first process may fail too, or a death explains a failure
_LEAVING_SECONDS = 2  # which the first gives the others to end
_STORE_MS = 60_000
_DOORS, _ADDRESS = "isara_jax/doors", "isara_jax/address"  # keys in the store
_HELLO, _LONGEST = 512, 4096  # bytes of the first line, and at most of the last
_STRANGERS = 64  # connections that are open and have not yet said who they are
_DONE = 0  # status of who has ended well


class Watch:
    """The connections of this process, which says two lines on each: who it is and how it ends.

    The first process hears all others and tells all.
    """

    def __init__(self, client: Any, number: int, n: int, coordinator: str) -> None:
        """Connects to the others, which do it at the same time.

        Args:
          client: of the coordination service; its store is used.
          number: of this process.
          n: how many there are.
          coordinator: host and port at which the others reach the service.
        """
        self._first = number == 0
        self._me = f"process {number} on {socket.gethostname()}"
        self._others = set(range(1, n)) if self._first else {0}
        self._connections: dict[int, socket.socket] = {}
        self._change = threading.Condition()
        self._heard: set[int] = set()  # whose last word has come
        self._gone: set[int] = set()  # whose connection is closed
        self._ending = threading.Lock()
        if self._first:
            self._open_doors(client)
        else:
            self._knock(client, number, coordinator)

    def _open_doors(self, client: Any) -> None:
        """Lets the others in, at those addresses of this machine at which they see it."""
        addresses = {
            client.blocking_key_value_get(f"{_ADDRESS}/{number}", _STORE_MS)
            for number in self._others
        }
        servers, secret = _listening(addresses), secrets.token_hex(16)
        doors = {address: server.getsockname()[1] for address, server in servers.items()}
        client.key_value_set(_DOORS, json.dumps([secret, doors]))
        _start(self._let_in, servers.values(), secret)

    def _knock(self, client: Any, number: int, coordinator: str) -> None:
        """Connects to the first process."""
        address = _reached(coordinator)
        client.key_value_set(f"{_ADDRESS}/{number}", address)
        secret, doors = json.loads(client.blocking_key_value_get(_DOORS, _STORE_MS))
        door = address or _host(coordinator), doors.get(address, doors.get(""))
        try:
            connection = socket.create_connection(door, timeout=20)
            connection.sendall(f"{secret} {self._me}".ljust(_HELLO).encode()[:_HELLO])
        except OSError as error:
            endings.say(
                f"{self._me} cannot reach {door[0]}:{door[1]} ({error}): only JAX watches over it"
            )
            return
        lines = _kept_open(connection)
        # Known to each other before anything can happen to this one.
        other = _line(lines) or "the first process"
        self._connections[0] = connection
        _start(self._hear, 0, other, lines)

    def _let_in(self, servers: Iterable[socket.socket], secret: str) -> None:
        """Accepts each of the others, and then nobody any more."""
        hellos: dict[socket.socket, bytes] = {}  # what has come of each, the oldest first
        with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
            for server in servers:
                selector.register(stack.enter_context(server), selectors.EVENT_READ, "a server")
            while self._others - self._connections.keys():
                for key, _ in selector.select():
                    found = key.fileobj
                    assert isinstance(found, socket.socket)
                    if key.data:
                        if (connection := _accepted(found)) is not None:
                            selector.register(connection, selectors.EVENT_READ)
                            hellos[connection] = b""
                    elif found in hellos:
                        more = _received(found, _HELLO - len(hellos[found]))
                        hellos[found] += more
                        if not more or len(hellos[found]) == _HELLO:
                            selector.unregister(found)
                            self._greet(found, hellos.pop(found), secret)
                    if len(hellos) > _STRANGERS:
                        oldest = next(iter(hellos))
                        selector.unregister(oldest)
                        self._greet(oldest, hellos.pop(oldest), secret)
            for stranger in hellos:
                stranger.close()

    def _greet(self, connection: socket.socket, hello: bytes, secret: str) -> None:
        """Follows a connection if it is one of the others'; else it is closed."""
        shown, _, name = hello.decode(errors="replace").rstrip().partition(" ")
        who = re.fullmatch(r"process (\d+) on \S+", name)
        known = secrets.compare_digest(shown.encode(), secret.encode()) and who is not None
        if not known or int(who[1]) not in self._others - self._connections.keys():
            connection.close()
            return
        lines = _kept_open(connection)
        _tell(connection, self._me)
        with self._change:
            self._connections[int(who[1])] = connection
            self._change.notify_all()
        _start(self._hear, int(who[1]), name, lines)

    def _hear(self, number: int, other: str, lines: TextIO) -> None:
        """Waits for the last word of another process, and ends this one if it is not good."""
        word = _line(lines)
        self._note(self._heard, number)
        status, _, sentence = word.partition(" ")
        if status == str(_DONE):
            _line(lines)
            self._note(self._gone, number)
            return
        if not word:
            self._note(self._gone, number)
            self._end(f"{other} has died: killed, or its machine is gone")
        _start(lambda: (_line(lines), self._note(self._gone, number)))
        if self._first:
            time.sleep(_FAILURE_SECONDS)  # what all stumble over, the first says itself
        known = endings.heard() is not None  # it says why itself
        self._end(sentence, "" if known else None, status=int(status))

    def _note(self, of: set[int], number: int) -> None:
        with self._change:
            of.add(number)
            self._change.notify_all()

    def _await(self, of: set[int], seconds: float | None = None) -> None:
        """Waits until all others to which there is a connection are in a set."""
        with self._change:
            self._change.wait_for(lambda: self._connections.keys() <= of, seconds)

    def _all(self) -> list[socket.socket]:
        """The connections; the first gives the others a moment to come."""
        with self._change:
            if self._first:
                there = self._connections.keys
                self._change.wait_for(lambda: self._others <= there(), _LEAVING_SECONDS)
            return list(self._connections.values())

    def leave(self, error: BaseException) -> NoReturn:
        """Ends all processes because of an error in this one, or a preemption of all.

        At once: at a regular end JAX would wait for the others, which wait for this one.
        """
        said, status = endings.told(error)
        if status == endings.PREEMPTED:
            self.done()
            self._await_leaving()
            endings.end(said if self._first else "", status)
        if status == endings.INTERRUPTED:
            self._end(f"{self._me} was interrupted", status=status)
        if isinstance(error, config.UserError):  # perhaps of all: the first speaks for them
            if self._first:
                self._end("", said)
            self._end(f"{self._me}: {said}", "" if self._connections else None)
        time.sleep(_FAILURE_SECONDS + 1)  # if another's death is felt here, that is what is said
        if status != endings.BUG:
            self._end(f"{self._me}: {said}", status=status)
        traceback.print_exception(error)
        cause = f"{self._me}: {type(error).__name__}: {error}"
        self._end(cause, f"{self._me}: {said}", status=status)

    def signalled(self) -> None:
        """Tells the others, when a signal ends this process."""
        if not self._ending.acquire(blocking=False):
            return  # what they say of it is no news any more
        if endings.asked_to_end():
            self._tell_all(endings.PREEMPTED, f"{self._me} was told to end (SIGTERM)")
        else:
            self._tell_all(endings.INTERRUPTED, f"{self._me} was interrupted")

    def done(self) -> None:
        """Ends the watch at a good end, which is when all are done.

        The others wait for the first, which may have much to write; JAX would not wait for long.
        """
        connections = self._all()
        if self._first:
            self._await(self._heard)
        for connection in connections:
            _tell(connection, str(_DONE))
        if not self._first:
            self._await(self._heard)

    def _end(self, sentence: str, said: str | None = None, *, status: int = 1) -> NoReturn:
        """Ends this process.

        Args:
          sentence: why, for the others; empty: the user knows.
          said: and for whoever reads this one's output, if that differs; empty: nothing.
          status: of the process; the others have it too where it is of a signal.
        """
        self._ending.acquire()  # for good: the first reason counts
        if said is None:
            said = sentence
        if said:
            endings.say(said)
        of_all = (endings.PREEMPTED, endings.INTERRUPTED)
        self._tell_all(status if status in of_all else endings.MISTAKE, sentence)
        endings.tidy()
        endings.end("", status)

    def _tell_all(self, status: int, sentence: str) -> None:
        for connection in self._all():
            _tell(connection, f"{status} {sentence}")
        self._await_leaving()

    def _await_leaving(self) -> None:
        """Lets the others end before the first, with whose end JAX would end them by SIGABRT."""
        if self._first:
            self._await(self._gone, _LEAVING_SECONDS)


def _host(coordinator: str) -> str:
    return coordinator.rpartition(":")[0].strip("[]")


def _reached(coordinator: str) -> str:
    """The address at which this process reaches the first; empty where it cannot."""
    door = _host(coordinator), int(coordinator.rpartition(":")[2])
    with contextlib.suppress(OSError), socket.create_connection(door, timeout=20) as probe:
        return probe.getpeername()[0]
    return ""


def _listening(addresses: set[str]) -> dict[str, socket.socket]:
    """A server at each address of this machine; at all where one is another machine's."""
    try:
        families = {a: socket.AF_INET6 if ":" in a else socket.AF_INET for a in addresses}
        return {a: socket.create_server((a, 0), family=family) for a, family in families.items()}
    except OSError:  # a router translates it
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        return {"": socket.create_server(("", 0), family=family, dualstack_ipv6=dual)}


def _accepted(server: socket.socket) -> socket.socket | None:
    try:
        connection, _ = server.accept()
    except OSError:  # it has gone again
        return None
    connection.setblocking(False)
    return connection


def _received(connection: socket.socket, size: int) -> bytes:
    try:
        return connection.recv(size)
    except OSError:
        return b""


def _start(work: Callable[..., Any], *args: Any) -> None:
    threading.Thread(target=work, args=args, daemon=True).start()


def _tell(connection: socket.socket, text: str) -> None:
    with contextlib.suppress(OSError):  # it has ended already
        connection.sendall(" ".join(text.split()).encode()[: _LONGEST - 1] + b"\n")


def _line(lines: TextIO) -> str:
    try:
        return lines.readline(_LONGEST).strip()
    except OSError:  # reset, or timed out
        return ""


def _kept_open(connection: socket.socket) -> TextIO:
    """What is said on a connection, which the kernel tests: half a minute, and a dead one ends."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection.makefile(encoding="utf-8", errors="replace")
