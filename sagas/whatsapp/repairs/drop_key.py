"""Drop a routing key that is wrong; the next reader that misses it fills it again."""

from typing import Final

from pydantic import BaseModel, ConfigDict

from evosaga.sagas.definition import Saga, retryable
from evosaga.sagas.whatsapp.repairs import admission, effects
from evosaga.sagas.whatsapp.types import ExistingName


class DropKey(BaseModel):
    """The ``data`` of a ``key.drop`` command."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instance_name: ExistingName


DROP_KEY: Final = Saga(
    name="drop-key",
    version=1,
    command="key.drop",
    internal=True,
    input=DropKey,
    admit=admission.admit_dropping,
    steps=(retryable("cache", do=effects.drop_key),),
)
