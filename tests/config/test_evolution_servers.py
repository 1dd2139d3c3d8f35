"""EVOSAGA_EVOLUTION_SERVERS: understood or refused in one line, which never quotes a key."""

import json
import re

import pytest
from pydantic import TypeAdapter

from evosaga.orchestrator.config import evolution_servers
from evosaga.orchestrator.config.log_config import Redaction, _secrets
from evosaga.orchestrator.config.settings import SettingsError, load_settings, servers_of
from evosaga.orchestrator.whatsapp import services
from evosaga.sagas.whatsapp.types import DEFAULT_SERVER, ServerName

KEY = "an-api-key-that-nobody-may-read"
GOOD = {"url": "https://berlin.example/", "api_key": KEY}


def test_further_servers_stand_beside_the_default_one() -> None:
    settings = load_settings(
        _env_file=None,
        evolution_url="https://first.example",
        evolution_api_key="k",
        evolution_servers=json.dumps({"berlin": GOOD}),
    )
    assert list(servers_of(settings)) == ["default", "berlin"]
    assert servers_of(settings)["berlin"].url == "https://berlin.example"
    assert KEY not in repr(settings)
    assert KEY not in Redaction(_secrets(settings))(None, "", f"it said {KEY}")


def test_it_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOSAGA_EVOLUTION_SERVERS", json.dumps({"berlin": GOOD}))
    settings = load_settings(_env_file=None)
    assert settings.evolution_servers["berlin"].api_key.get_secret_value() == KEY
    monkeypatch.setenv("EVOSAGA_EVOLUTION_SERVERS", "")
    assert not load_settings(_env_file=None).evolution_servers


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "must be a JSON object"),
        (f'["{KEY}"]', "must be a JSON object"),
        (json.dumps({"default": GOOD}), "default is the server of EVOSAGA_EVOLUTION_URL"),
        (json.dumps({"Berlin": GOOD}), "a server's name is"),
        (json.dumps({"": GOOD}), "a server's name is"),
        (json.dumps({"b" * 32: GOOD}), "a server's name is"),
        (json.dumps({KEY.upper(): GOOD}), "a server's name is"),
        (json.dumps({"berlin": KEY}), "berlin must be an object"),
        (json.dumps({"berlin": {"url": "https://b.example"}}), "berlin must be an object"),
        (json.dumps({"berlin": GOOD | {KEY: 1}}), "berlin must be an object"),
        (json.dumps({"berlin": GOOD | {"url": KEY}}), "berlin: url must start with"),
        (json.dumps({"berlin": GOOD | {"url": 5}}), "berlin: url must start with"),
        (json.dumps({"berlin": GOOD | {"url": "http://["}}), "berlin: url must start with"),
        (json.dumps({"berlin": GOOD | {"url": "http://b:x"}}), "berlin: url must start with"),
        (json.dumps({"berlin": GOOD | {"api_key": " "}}), "berlin: api_key must be a text"),
        (json.dumps({"berlin": GOOD | {"api_key": 5}}), "berlin: api_key must be a text"),
        (json.dumps({"berlin": GOOD | {"api_key": "KEY\n2"}}), "must be plain ASCII"),
        (json.dumps({"berlin": GOOD | {"api_key": "KEY漢"}}), "must be plain ASCII"),
        (json.dumps({"berlin": GOOD | {"url": "http://b.example?x=1"}}), "no ? or #"),
        (f'{{"a": {json.dumps(GOOD)}, "a": {{}}}}', "given twice"),
        (json.dumps({"a": GOOD, "b": GOOD}), "b and a are the same server"),
        (
            json.dumps({"a": GOOD | {"url": "https://FIRST.example:443/"}}),
            "a and default are the same server",
        ),
    ],
)
def test_what_can_not_be_used_is_refused_in_one_line_without_the_key(value: str, said: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        load_settings(
            _env_file=None, evolution_url="https://first.example", evolution_servers=value
        )
    line = str(refusal.value)
    assert line.startswith("EVOSAGA_EVOLUTION_SERVERS: ")
    assert said in line
    assert "\n" not in line
    assert not re.search(KEY, line, re.IGNORECASE)


@pytest.mark.parametrize(("further", "most"), [(0, 500), (1, 250), (3, 125)])
def test_every_server_leaves_room_for_the_others(further: int, most: int) -> None:
    """What one of them can hold up, calls and those who wait for one, is its share of the room."""
    servers = {f"s{n}": {"url": f"http://s{n}.example", "api_key": "k"} for n in range(further)}
    settings = load_settings(
        _env_file=None,
        evolution_url="http://first.example",
        evolution_api_key="k",
        evolution_servers=json.dumps(servers),
        evolution_concurrency=1000,
        capacity=1000,
    )
    made = services.evolution_servers(settings)
    assert list(made) == ["default", *servers]
    assert len({id(api._breaker) for api in made.values()}) == 1 + further
    for api in made.values():
        assert api._breaker._places == most
        waiting = api._breaker._queue
        assert (waiting is None) == (further == 0), "alone, nobody else wants the room"
        assert most + (waiting or 0) <= 1000 // (1 + further)


def test_a_key_that_no_header_can_carry_is_refused_at_the_start() -> None:
    with pytest.raises(SettingsError, match="EVOSAGA_EVOLUTION_API_KEY: the key must be plain"):
        load_settings(_env_file=None, evolution_url="https://first.example", evolution_api_key="é")


@pytest.mark.parametrize("url", ["https://first.example/?tenant=1", "https://first.example/#top"])
def test_a_query_in_the_url_of_a_server_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(SettingsError, match="EVOSAGA_EVOLUTION_URL: must not have a query"):
        load_settings(_env_file=None, evolution_url=url, evolution_api_key="key")


def test_a_server_is_named_alike_in_settings_and_in_commands() -> None:
    pattern = TypeAdapter(ServerName).json_schema()["pattern"]
    assert pattern == rf"\A{evolution_servers.NAME.pattern}\z"
    assert evolution_servers.DEFAULT_SERVER == DEFAULT_SERVER
