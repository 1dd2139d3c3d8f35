"""The door for commands that do not come through the stream: HTTP, the command line, chores.

They are accepted straight in Postgres, by the same rules and in the same transaction as those of
the stream, so they are taken while Redis is down. What ``submit`` has answered is committed.
"""

from dataclasses import dataclass
from uuid import UUID

from events.commands import BadCommand, Command
from events.database import Pool
from events.log import EventLog
from orchestrator.accept import Accepted, accept, understand
from orchestrator.engine import Engine
from orchestrator.steer import STEERING, Again, Steering, steer
from sagas.catalogue import Catalogue
from sagas.world import World


@dataclass(frozen=True, slots=True)
class Gate:
    """``engine``: the one of this process, if it has a worker; else any worker takes over."""

    pool: Pool
    log: EventLog
    world: World
    catalogue: Catalogue
    engine: Engine | None = None

    async def submit(self, command: Command) -> Accepted:
        """Obey a command, one that starts a saga or one that steers it.

        ``kind`` is ``known`` for a repeated one. Raises ``BadCommand``, also when the id was used
        for another command, and what the database raises while it is away: nothing is lost
        then, nothing is promised, and the caller may repeat.
        """
        if command.type in STEERING:
            answer = await steer(self.log, self.catalogue, command, self.engine)
            if not isinstance(answer, Again):
                saga_id = UUID(str(Steering.model_validate(command.data).saga_id))
                return Accepted("known" if answer == "known" else "steered", saga_id)
            command = answer.command
        request = understand(self.catalogue, command)
        worker = None
        if self.engine is not None:
            self.engine.pin()
            worker = self.engine.worker
        (accepted,) = await accept(self.pool, self.world, worker, [request])
        if accepted.kind == "conflicting":
            sentence = f"the id {command.id} was used for another command"
            raise BadCommand("conflicting_duplicate", sentence)
        if accepted.kind == "new" and accepted.state is not None and self.engine is not None:
            correlation = command.correlation_id or str(accepted.saga_id)
            self.engine.start(accepted.saga_id, accepted.state, correlation)
        return accepted
