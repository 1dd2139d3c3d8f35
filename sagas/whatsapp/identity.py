"""A saga's instance: its name, and the token that proves it to be ours."""

from uuid import UUID

from evosaga.sagas.context import StepContext


def name_of(ctx: StepContext) -> str:
    """The instance's name on Evolution."""
    return str(ctx.facts["instance_name"])


def token_of(ctx: StepContext) -> str:
    """Its birthmark. Raises ``UnknownKey`` when the key that it was made under is gone."""
    creator = UUID(ctx.facts["created_by"])
    return ctx.world.keys.instance_token(creator, ctx.facts["key_id"])
