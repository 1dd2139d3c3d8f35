"""A command as a type: its data, its name and what the saga it starts comes to.

For whoever gives commands from Python: ``await client.start(BookRoom(...))`` needs no more.
"""

from typing import Any, ClassVar, Generic

from pydantic import BaseModel, ConfigDict
from typing_extensions import TypeVar

ResultT = TypeVar("ResultT", bound=BaseModel, default=Any)


class Command(BaseModel, Generic[ResultT]):
    """The data of a command. ``ResultT``: the model of the saga's result.

        class BookRoom(Command[Booking]):
            command = "room.book"
            room: int

    Fields that it does not have are refused, and nothing of it changes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: ClassVar[str]

    @classmethod
    def result_model(cls) -> type[ResultT] | None:
        """The model of the result; None where it was not said."""
        for base in cls.__mro__:
            args = getattr(base, "__pydantic_generic_metadata__", {}).get("args", ())
            if args and isinstance(args[0], type):
                found: type[ResultT] = args[0]
                return found
        return None
