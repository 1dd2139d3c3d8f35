"""Completeness of an instance: its own row, and those of its webhook and its settings.

Evolution's create writes them in this order and without a transaction. Killed in between, or
without its Postgres for a while, it leaves an instance that carries our token, works, and delivers
no webhook (seen on 2.3.6 and 2.3.7: up to 35 of 80 without a webhook). So a look that
finds our token vouches for the first row alone.

What vouches for all of them is the 201 to a first create: it is sent after the last of the rows,
and of the inserts before it only the instance's own may fail unseen, without which the others
can't be. Any other instance is looked at here, and what it lacks is set again: both calls write a
row or overwrite it, so they may be made twice.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from evosaga.sagas.outcome import Done, Held, Outcome, Unknown
from evosaga.sagas.whatsapp.evolution.answers import UNAVAILABLE, Answer, Verdict
from evosaga.sagas.whatsapp.evolution.client import EvolutionApi
from evosaga.sagas.whatsapp.evolution.holds import hold, hold_unsent
from evosaga.sagas.whatsapp.evolution.models import CreatedInstance, Webhook
from evosaga.sagas.whatsapp.evolution.payload import TOKEN_HEADER, wanted_webhook
from evosaga.sagas.whatsapp.services import Context, evolution_of

SETTINGS: Final[Mapping[str, Any]] = {
    "rejectCall": False,
    "msgCall": "",
    "groupsIgnore": False,
    "alwaysOnline": False,
    "readMessages": False,
    "readStatus": False,
    "syncFullHistory": False,
    "wavoipToken": "",
}
"""What Evolution writes for a create that says nothing of settings, as ours do."""
_STALLS: Final = "REMOVE_INSTANCE"


@dataclass(frozen=True, slots=True)
class Missing:
    """What an instance lacks, each as a sentence without secrets; None: nothing.

    ``unclear``: an answer that says neither.
    """

    webhook: str | None = None
    settings: str | None = None
    unclear: Answer | None = None

    @property
    def said(self) -> str | None:
        """Both together; None: it is whole, as far as can be said."""
        return " and ".join(filter(None, (self.webhook, self.settings))) or None


def webhook_lacks(
    found: Webhook | None, wanted: Mapping[str, Any], tokens: Collection[str] = ()
) -> str | None:
    """What is wrong with a webhook's row, next to what was asked for; None: nothing.

    ``tokens``: any of these may be in the header, where one of ours has to be. More events than
    ours do no harm, except the one that holds up removals.
    """
    if found is None:
        return "it has no webhook"
    if not found.enabled:
        return "its webhook is switched off"
    if found.url != wanted["url"]:
        return "its webhook leads elsewhere"
    if missing := [event for event in wanted["events"] if event not in found.events]:
        return f"its webhook is not told of {', '.join(missing)}"
    if _STALLS in found.events:
        return f"its webhook is told of {_STALLS}, which holds up its removal"
    ours = wanted["headers"].get(TOKEN_HEADER)
    if ours is not None and found.headers.get(TOKEN_HEADER) not in {ours, *tokens}:
        return "its webhook shows no token, or another one"
    return None


async def look(
    evolution: EvolutionApi,
    name: str,
    token: str,
    wanted: Mapping[str, Any] | None,
    tokens: Collection[str] = (),
) -> Missing:
    """What the instance lacks. ``wanted`` None: no webhook is expected, so none is looked for."""
    webhook = None
    if wanted is not None:
        webhook, unclear = await webhook_of(evolution, name, token, wanted, tokens)
        if unclear is not None:
            return Missing(unclear=unclear)
    answer = await evolution.own_rows(token)
    if answer.status != 200 or answer.instances is None:
        return Missing(unclear=answer)
    listed = answer.instances.get(name)
    return Missing(webhook, None if listed is None or listed.has_settings else "it has no settings")


async def webhook_of(
    evolution: EvolutionApi,
    name: str,
    token: str,
    wanted: Mapping[str, Any],
    tokens: Collection[str] = (),
) -> tuple[str | None, Answer | None]:
    """What its webhook lacks, and else the answer that says nothing of it."""
    answer = await evolution.webhook(name, token)
    if answer.status != 200 or (answer.webhook is None and not answer.null):
        return None, answer
    return webhook_lacks(answer.webhook, wanted, tokens), None


@dataclass(frozen=True, slots=True)
class WantedConfiguration:
    """What an instance has to be like. Tokens stay here: nothing of it is recorded."""

    name: str
    token: str
    webhook: Mapping[str, Any] | None
    tokens: Collection[str] = field(default=())


def wanted_configuration(ctx: Context, name: str, token: str) -> WantedConfiguration:
    """What a create asks for."""
    tokens = ctx.services.keys.webhook_tokens(ctx.saga_id)
    return WantedConfiguration(name, token, wanted_webhook(ctx, name), tokens)


def vouches_for_all(ctx: Context, name: str, token: str, answer: Answer) -> bool:
    """Whether webhook and settings need no look: a first create's own 201 proves them."""
    first = not ctx.in_doubt and not ctx.input.instance_name
    return first and answer.status == 201 and answer.created == CreatedInstance(name, token)


async def lacks(ctx: Context, wish: WantedConfiguration) -> str | None:
    """For a probe: what can be said to be lacking."""
    return (await look(evolution_of(ctx), wish.name, wish.token, wish.webhook, wish.tokens)).said


async def completed(ctx: Context, wish: WantedConfiguration, result: Mapping[str, Any]) -> Outcome:
    """``Done(result)`` once the instance is whole; what it lacks is set again before that."""
    found = await look(evolution_of(ctx), wish.name, wish.token, wish.webhook, wish.tokens)
    if found.unclear is not None:
        return _unclear(ctx, found.unclear, "to a look at the instance's webhook and settings")
    if found.webhook is not None:
        assert wish.webhook is not None
        again = {k: v for k, v in wish.webhook.items() if k != "headers" or v}
        answer = await evolution_of(ctx).set_webhook(
            wish.name, wish.token, {"enabled": True, **again}
        )
        if answer.status not in (200, 201):
            return _unclear(ctx, answer, "when its webhook was set again")
    if found.settings is not None:
        answer = await evolution_of(ctx).set_settings(wish.name, wish.token, dict(SETTINGS))
        if answer.status not in (200, 201):
            return _unclear(ctx, answer, "when its settings were set again")
    if found.said is None:
        return Done(result)
    left = await look(evolution_of(ctx), wish.name, wish.token, wish.webhook, wish.tokens)
    if left.unclear is not None:
        return _unclear(ctx, left.unclear, "to a look at what was set again")
    if left.said is not None:
        return Unknown("instance_incomplete", f"{wish.name} was set right, and still {left.said}")
    return Done({**result, "mended": found.said})


def _unclear(ctx: Context, answer: Answer, asked: str) -> Held | Unknown:
    """Without its database Evolution refuses even the instance's own token: that is an outage.

    The instance is there meanwhile, so a create that waits is in doubt.
    """
    if answer.status == 429:
        return replace(hold_unsent(ctx, answer, Verdict.BUSY), in_doubt=True)
    if answer.code:
        return replace(hold_unsent(ctx, answer, Verdict.NOT_SENT), in_doubt=True)
    said = f"Evolution answered {answer.text} {asked}"
    looked = asked.startswith("to a look")
    if answer.status in (0, 401, 503) or (looked and answer.status >= 500):
        return replace(hold(ctx, UNAVAILABLE, said, answer.retry_after), in_doubt=True)
    return Unknown("instance_incomplete", said)
