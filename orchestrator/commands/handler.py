"""The door for commands that do not come through the stream: HTTP, the command line, chores.

They are accepted straight in Postgres, by the same rules and in the same transaction as those of
the stream, so they are taken while Redis is down. What ``submit`` has answered is committed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from evosaga.events import syncpoints
from evosaga.events.commands import BadCommand, Command
from evosaga.events.database import Pool
from evosaga.events.event_log import EventLog
from evosaga.orchestrator.commands.accept import Accepted, accept, parse_request
from evosaga.orchestrator.commands.batching import Batcher
from evosaga.orchestrator.commands.claims import Request
from evosaga.orchestrator.commands.control import STEERING, ControlCommand, Restart, apply_control
from evosaga.orchestrator.engine.engine import Engine
from evosaga.sagas.registry import SagaRegistry


@dataclass(frozen=True, slots=True)
class CommandHandler:
    """``engine``: the one of this process, if it has a worker; else any worker takes over."""

    pool: Pool
    log: EventLog
    services: object
    registry: SagaRegistry
    engine: Engine | None = None
    intake: Batcher = field(default_factory=Batcher, repr=False, compare=False)

    async def submit(self, command: Command) -> Accepted:
        """Obey a command, one that starts a saga or one that steers it.

        ``kind`` is ``known`` for a repeated one. Raises ``BadCommand``, also when the id was used
        for another command, and what the database raises while it is away: nothing is lost
        then, nothing is promised, and the caller may repeat.
        """
        if command.type in STEERING:
            answer = await apply_control(
                self.log, self.services, self.registry, command, self.engine
            )
            if not isinstance(answer, Restart):
                saga_id = UUID(str(ControlCommand.model_validate(command.data).saga_id))
                return Accepted("known" if answer == "known" else "steered", saga_id)
            command = answer.command
        request = parse_request(self.registry, command)
        accepted = await self.intake.through(request, self._take)
        if accepted.kind == "conflicting":
            sentence = f"the id {command.id} was used for another command"
            raise BadCommand("conflicting_duplicate", sentence)
        return accepted

    async def _take(self, requests: Sequence[Request]) -> Sequence[Accepted]:
        """Accept a batch, and drive what is new here if there is room."""
        engine, worker = self.engine, None
        if engine is not None and engine.free >= len(requests):
            engine.pin()
            worker = engine.worker
        await syncpoints.reach("api.pre")
        answers = await accept(self.pool, self.services, worker, requests)
        await syncpoints.reach("api.post")
        for request, answer in zip(requests, answers, strict=True):
            if engine is not None and worker and answer.kind == "new" and answer.state is not None:
                correlation = request.command.correlation_id or str(answer.saga_id)
                engine.start(answer.saga_id, answer.state, correlation)
        return answers
