"""The wish to look for an instance again, where none should be."""

from sagas.outcome import FollowUp
from sagas.vocabulary import server_entry
from sagas.world import StepContext


def watch(ctx: StepContext) -> FollowUp:
    """The command that starts ``sagas.watch_instance`` for the instance of this saga."""
    facts = {name: ctx.facts[name] for name in ("instance_name", "created_by", "key_id")}
    return FollowUp("instance.watch", facts | server_entry(ctx.facts.get("server")))
