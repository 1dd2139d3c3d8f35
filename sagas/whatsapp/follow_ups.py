"""Follow-up command: watch for an instance where none should be."""

from evosaga.sagas.outcome import FollowUp
from evosaga.sagas.whatsapp.services import Context
from evosaga.sagas.whatsapp.types import server_entry


def watch(ctx: Context) -> FollowUp:
    """The command that starts ``evosaga.sagas.whatsapp.repairs.watch_instance`` for the instance
    of this saga."""
    facts = {name: ctx.facts[name] for name in ("instance_name", "created_by", "key_id")}
    return FollowUp("instance.watch", facts | server_entry(ctx.facts.get("server")))
