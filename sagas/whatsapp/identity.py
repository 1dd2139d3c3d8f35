"""A saga's instance: its name, and the token that proves it to be ours."""

from uuid import UUID

from evosaga.sagas.whatsapp.services import Context


def name_of(ctx: Context) -> str:
    """The instance's name on Evolution."""
    return str(ctx.facts["instance_name"])


def token_of(ctx: Context) -> str:
    """Its birthmark. Raises ``UnknownKey`` when the key that it was made under is gone."""
    creator = UUID(ctx.facts["created_by"])
    return ctx.services.keys.instance_token(creator, ctx.facts["key_id"])
