"""Whether an answer is an Evolution server's own, and what a person must mend when it is not.

In front of Evolution stand proxies, firewalls, tunnels and login pages, and they answer in its
name: with a page, or with JSON of their own. What they say is no verdict on an instance or a saga,
and it goes on until a person mends the set-up, as with a wrong key. Evolution itself says
``{"status", "error", "response": {"message"}}`` with every error (as seen on 1.8 to 2.4).

What only means that the server is away right now (408, 425, 429, 502, 503, 504) is not judged here.
"""

from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlsplit

from evosaga.sagas.whatsapp.evolution.answers import Answer, Operation, words_in
from evosaga.sagas.whatsapp.evolution.models import instance_list

_URL: Final = "EVOSAGA_EVOLUTION_URL (of a further server, EVOSAGA_EVOLUTION_SERVERS)"
_KEY: Final = "EVOSAGA_EVOLUTION_API_KEY (of a further server, EVOSAGA_EVOLUTION_SERVERS)"
_OWN_REFUSALS: Final = frozenset({400, 401, 403, 404, 409, 413, 414, 415, 422})
_PASSING: Final = frozenset({408, 425, 429})
_FOR_GOOD: Final = frozenset({501, 505, 511})
"""The 5xx that come of the set-up: a proxy that can't do what is asked, or wants a log-in."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What such an answer means, and what a person can do about it.

    ``status`` 0 fits all, ``words`` are looked for in the body in small letters. ``alien``: it is
    not Evolution's own answer.
    """

    alien: bool
    status: int | range
    words: str
    said: str
    cure: str

    def fits(self, answer: Answer) -> bool:
        """Whether it is about this answer."""
        status, got = self.status, answer.status
        same = got in status if isinstance(status, range) else status in (0, got)
        return same and self.alien == answer.alien and words_in(answer.body, self.words)


# Read from the top; the first that fits counts.
MEANINGS: Final = (
    Meaning(
        False,
        500,
        "not allowed by cors",
        'it lets browsers in only ("Not allowed by CORS")',
        "unset CORS_ORIGIN on the Evolution server, or set it to *, and restart it",
    ),
    Meaning(
        False,
        503,
        "license_required",
        "it has no licence yet (LICENSE_REQUIRED)",
        "register the Evolution server",
    ),
    Meaning(
        False,
        403,
        "missing global api key",
        'the key does not reach it ("Missing global api key")',
        f"set {_KEY}, and let no proxy strip the header apikey",
    ),
    Meaning(False, 401, "", "it refuses the key", f"check {_KEY}: the server's global key"),
    Meaning(
        False, 403, "", "it forbids the call", f"check {_KEY} and what stands before the server"
    ),
    Meaning(True, 404, "cannot ", "it has no such route", f"check the path in {_URL}"),
    Meaning(False, 404, "", "it has no such route", f"check the path in {_URL}"),
    Meaning(
        False,
        range(300, 400),
        "",
        "it leads elsewhere",
        f"set {_URL} to the address it leads to, with https:// say",
    ),
    Meaning(
        True,
        401,
        "",
        "something before Evolution wants a log-in",
        f"let this machine past it, or check {_URL}",
    ),
    Meaning(
        True,
        407,
        "",
        "a proxy on the way wants a log-in",
        f"let this machine past it, or check {_URL}",
    ),
    Meaning(
        True,
        511,
        "",
        "the network wants a log-in",
        "log this machine in to its network, or give it another one",
    ),
    Meaning(
        True,
        range(200, 300),
        "",
        "a web page or another program answers, not Evolution",
        f"check {_URL}, and whether a login page stands before it",
    ),
    Meaning(
        True,
        0,
        "",
        "a proxy, a firewall or another program refuses, not Evolution",
        f"let this machine past it, or check {_URL}",
    ),
)


def recognised(asked: Operation, answer: Answer) -> Answer:
    """The same, marked as alien if no Evolution server says that; its body then proves nothing."""
    if _not_evolution(asked, answer):
        # Of a body that is not Evolution's nothing is believed; its words still say what it is.
        told = "" if answer.alien or answer.status >= 300 else ", with nothing that Evolution says"
        alien = replace(answer, alien=True, text=answer.text + told)
        return replace(explained(alien), body=None)
    return replace(answer, alien=False) if answer.alien else answer


def explained(answer: Answer) -> Answer:
    """The same, with what a misconfigured server's answer means."""
    for meaning in MEANINGS:
        if meaning.fits(answer):
            place = _register(answer.body) if meaning.words == "license_required" else ""
            return replace(answer, meaning=f"{meaning.said}: {meaning.cure}{place}")
    return answer


def cure_in(message: str) -> str | None:
    """What can be done, out of a sentence that was made of such an answer."""
    for meaning in MEANINGS:
        _, found, rest = message.partition(f"{meaning.said}: {meaning.cure}")
        if found:
            address = rest.split()[1] if rest.startswith(" at ") and rest[4:].strip() else ""
            return f"{meaning.cure} at {address.rstrip('),.;')}" if address else meaning.cure
    return None


def _not_evolution(asked: Operation, answer: Answer) -> bool:
    status, body = answer.status, answer.body
    if 200 <= status < 300:
        # Half an answer, of a connection that broke, has no body either: that is no evidence.
        return answer.alien or (body is not None and not _is_an_answer(asked, body))
    if status in _FOR_GOOD:
        return not _is_an_error(body)
    if not 400 <= status < 500 or status in _PASSING:
        return False
    if status not in _OWN_REFUSALS:
        return True
    if status == 404 and words_in(body, '"cannot '):
        return True  # its words for a route that there is not: the URL leads past its own
    return answer.alien or (body is not None and not _is_an_error(body))


def _is_an_error(body: object) -> bool:
    response = body.get("response") if isinstance(body, dict) else None
    return isinstance(response, dict) and "message" in response


def _is_an_answer(asked: Operation, body: object) -> bool:
    """Whether it has the shape of what a server answers when it goes well, or nearly."""
    match asked:
        case Operation.LIST | Operation.OWN | Operation.NAMED:
            if (listed := instance_list(body)) is not None:
                return listed.evolutions
        case Operation.CONNECT:
            return isinstance(body, dict)
        case Operation.WEBHOOK | Operation.SET_WEBHOOK | Operation.SET_SETTINGS if isinstance(
            body, dict
        ):
            if body.keys() & {"instanceId", "settings"}:
                return True
    if not isinstance(body, dict):
        return False
    # Some of its failures are a 200 with "error": true.
    known = isinstance(body.get("error"), bool) or body.get("status") == "SUCCESS"
    return known or bool(body.keys() & {"instance", "hash"}) or _is_an_error(body)


def _register(body: object) -> str:
    """Where a 2.4 wants to be registered, if it says so and that can be shown."""
    url = body.get("register_url") if isinstance(body, dict) else None
    if not isinstance(url, str) or len(url) > 300 or not url.isascii() or not url.isprintable():
        return ""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    plain = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc
    return f" at {url}" if plain and " " not in url else ""
