"""One run: a cluster in which whatever happens next is somebody's choice.

The kit's scene (``evosaga.orchestrator.commands.testing.scene``), which says what may become of a
commit, with what may become of a call of Evolution or Redis.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import Final

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from evosaga.orchestrator.commands.testing import scene as kit
from evosaga.orchestrator.commands.testing.workers import Op
from evosaga.sagas.whatsapp.evolution.answers import UNREACHABLE, Answer
from tests.harness.simulation.cluster import Cluster
from tests.harness.simulation.database import CATALOGUE
from tests.harness.simulation.outside import answer, refusal

_HTTP: Final = (
    "refused",
    "500",
    "400",
    "lost",
    "late",
    "lie",
    "crash before",
    *kit.WORKER,
    "doze",
    "cancel",
)
FAULTS: Final = MappingProxyType(
    {
        **kit.FAULTS,
        "look": ("refused", "500", "sleep before", "sleep after", "cancel"),
        "create": _HTTP,
        "delete": _HTTP,
        "redis": ("refused", "lost", "crash", "sleep before", "sleep after", "cancel"),
    }
)
"""Beyond those of the kit:

    500                an error, and nothing has happened
    400                of a create: it happened, and is cleaned up by name a while later
    lie                a success is answered that never happened
"""


class Scene(Cluster):
    """A cluster with somebody who chooses: ``choose(kind, options)`` returns one of the options."""

    faults = FAULTS

    def __init__(
        self,
        choose: Callable[[str, list[str]], str],
        *,
        workers: int = 2,
        fenced: bool = True,
        deadline: float | None = None,
    ) -> None:
        self.deadline = deadline
        super().__init__(CATALOGUE, choose, workers=workers, fenced=fenced)

    def go_wrong(self, op: Op, how: str) -> None:
        """The caller gets an error, or worse."""
        self.pending.remove(op)
        if op.kind == "join":
            op.future.set_exception(ValueError("the database refuses this row"))
        elif op.kind == "redis":
            if how == "lost":
                self.do(op)
            lost = RedisTimeoutError("lost") if how == "lost" else RedisConnectionError("refused")
            op.future.set_exception(lost)
        else:
            op.future.set_result(self._wrong_answer(op, how))

    def _wrong_answer(self, op: Op, how: str) -> Answer:
        match how:
            case "refused":
                return Answer(0, None, "refused", sent=False, code=UNREACHABLE)
            case "500":
                return refusal(500, ["an error"])
            case "lie":
                body = {"instance": {"instanceName": op.about}, "status": "SUCCESS"}
                return answer(201 if op.kind == "create" else 200, body)
            case "400":
                if op.kind == "create":
                    made: Answer = self.do(op)
                    if made.status != 201:  # a guard refused it before there was anything
                        return made
                    self.evolution.clean_up(op.about)
                return refusal(400, ["[object Object]"])
            case "lost":
                self.do(op)
            case "late":
                self.land_later(op)
        return Answer(0, None, "ReadError")

    def landed(self, op: Op) -> None:
        over = [s for s in self.database.sagas.values() if s.row.status == "compensated"]
        if op.kind == "create" and any(s.start.instance_name == op.about for s in over):
            self.notes["landed after it was compensated"] += 1
