"""What a saga came to: its steps' results as the model that its definition declares."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from evosaga.orchestrator.engine.state import State
from evosaga.sagas.definition import Saga

BAD_RESULT: Final = "bad_result"
"""The code of a saga that is parked because its results don't fit its model."""


class BadResult(Exception):
    """The results of a saga's steps don't fit; names the field, never a value."""


def result_of(saga: Saga, state: State) -> BaseModel | None:
    """The result of a saga whose steps are done; None where none is declared.

    Raises ``BadResult``.
    """
    if saga.result is None:
        return None
    model: type[BaseModel] = saga.result
    given = _given(saga, state)
    try:
        return model.model_validate({name: given[name] for name in _names(model) if name in given})
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in one['loc']) or 'result'}: "
            f"{one['msg'].removeprefix('Value error, ')}"
            for one in error.errors(include_input=False, include_url=False)
        ]
        raise BadResult(
            f"the result does not fit {model.__name__}: {'; '.join(problems)}"
        ) from None


def _given(saga: Saga, state: State) -> Mapping[str, Any]:
    given: dict[str, Any] = {}
    for step in saga.steps:
        given |= state.progress(step.name).result or {}
    return given


def _names(model: type[BaseModel]) -> set[str]:
    aliases = {field.alias for field in model.model_fields.values() if field.alias}
    return {*model.model_fields, *aliases}
