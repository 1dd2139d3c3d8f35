"""API keys, as operators write them and as callers show them; and the sessions made of them."""

import base64
import json
import uuid

import httpx
import pytest
from pydantic import SecretStr

from evosaga.orchestrator.api.auth import COOKIE, CSRF_HEADER, Authenticator, Caller, visible
from evosaga.orchestrator.config.api_keys import read_api_keys
from evosaga.orchestrator.config.log_config import Redaction, _secrets
from evosaga.orchestrator.config.settings import SettingsError, load_settings
from tests.api.conftest import CREATE, OPERATOR, OUR_KEY, OURS, THEIRS, asked, problem

SECRETS = ["a" * 32, "b" * 32]
KEYS = f"operator:{OPERATOR},ours:{OUR_KEY}:{OURS}"


@pytest.fixture
def doorkeeper() -> Authenticator:
    return Authenticator(read_api_keys(KEYS), SECRETS)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("hunter2hunter2", "entry 1 must read name:key or name:key:organization_id"),
        ("a:hunter2hunter2hu,hunter2", "entry 2 must read name:key"),
        ("a:hunter2:b:c", "entry 1 must read"),
        (":hunter2", "entry 1: a name is"),
        ("Zoë:hunter2", "entry 1: a name is"),
        ("a:", "entry 1 (a): a key is visible ASCII"),
        ("a:hunter 2", "entry 1 (a): a key is visible ASCII"),
        ("a:hunter2", "entry 1 (a): a key has at least 16 characters; make one: openssl rand"),
        ("a:hunter2hunter2hu,b:hunter2hunter2h", "entry 2 (b): a key has at least 16 characters"),
        ("a:hunter2hunter2hunter2:the-clinic", "entry 1 (a): the organization must be a UUID"),
        ("a:hunter2hunter2hunter2,a:hunter3hunter3hunter3", "the same name is given twice"),
        ("a:hunter2hunter2hunter2,b:hunter2hunter2hunter2", "the same key is given twice"),
        (",,", "holds no key"),
    ],
)
def test_keys_that_make_no_sense_are_refused_in_one_line_that_shows_no_key(
    text: str, sentence: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(_env_file=None, api_keys=text)
    assert str(refused.value).startswith(f"EVOSAGA_API_KEYS: {sentence}")
    assert "hunter" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_keys_may_stand_in_lines_of_their_own_and_empty_means_none() -> None:
    told = read_api_keys(
        f" a : the-first-key-of-two ,\n b:the-second-key-of-two:{str(OURS).upper()} , "
    )
    assert [(key.name, key.organization_id) for key in told] == [("a", None), ("b", OURS)]
    assert load_settings(_env_file=None, api_keys="  ").api_keys is None


def test_a_key_is_its_callers_and_nobody_elses(doorkeeper: Authenticator) -> None:
    assert doorkeeper.caller_for_key(OPERATOR) == Caller("operator")
    assert doorkeeper.caller_for_key(OUR_KEY) == Caller("ours", OURS)
    for wrong in ("", "x", OPERATOR[:-1], OPERATOR + " ", OPERATOR.upper(), "ké"):
        assert doorkeeper.caller_for_key(wrong) is None


def test_an_organization_sees_its_own_and_an_operator_sees_all() -> None:
    ours, operator = Caller("ours", OURS), Caller("operator")
    assert visible(ours, OURS)
    assert not visible(ours, THEIRS)
    assert not visible(ours, None)
    assert all(visible(operator, whose) for whose in (OURS, THEIRS, None))


def test_no_key_is_ever_kept_or_logged(doorkeeper: Authenticator) -> None:
    assert OPERATOR not in repr(vars(doorkeeper))
    settings = load_settings(_env_file=None, api_keys=KEYS)
    assert OPERATOR not in repr(settings)
    line = Redaction(_secrets(settings))(None, "", f"who sent {OPERATOR} or {OUR_KEY}?")
    assert line == "who sent [redacted] or [redacted]?"


def test_a_session_is_its_keys_and_ends_with_it(
    doorkeeper: Authenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = doorkeeper.open_session(OUR_KEY)
    assert session is not None
    assert OUR_KEY not in session
    assert doorkeeper.open_session("wrong") is None
    assert doorkeeper.caller_for_session(session) == Caller("ours", OURS)

    rotated = Authenticator(read_api_keys(KEYS), ["c" * 32, *SECRETS])
    assert rotated.caller_for_session(session) == Caller("ours", OURS)
    for keys, secrets in (
        (KEYS, ["c" * 32]),
        (KEYS.replace(OUR_KEY, "another-key-altogether"), SECRETS),
        (f"operator:{OPERATOR}", SECRETS),
        (f"ours:{OPERATOR},operator:{OUR_KEY}:{OURS}", SECRETS),
    ):
        other = Authenticator(read_api_keys(keys), secrets)
        assert other.caller_for_session(session) is None, keys

    monkeypatch.setattr("evosaga.orchestrator.api.auth.time.time", lambda: 10**11)
    assert doorkeeper.caller_for_session(session) is None


def test_a_session_can_not_be_made_up(doorkeeper: Authenticator) -> None:
    session = doorkeeper.open_session(OUR_KEY)
    assert session is not None
    body, _, signature = session.rpartition(".")
    claims, _, since = body.rpartition(".")
    forged = base64.urlsafe_b64encode(json.dumps({"name": "operator", "key": ""}).encode())
    for wrong in (
        "",
        ".",
        body,
        f"{body}.",
        f"{body}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}",
        f"{forged.decode().rstrip('=')}.{since}.{signature}",
        f"{claims}.{since[:-1]}{'B' if since[-1] == 'A' else 'A'}.{signature}",
        f".{signature}",
        "é.é",
        "\udcff.\udcff",
        "x" * 100_000,
    ):
        assert doorkeeper.caller_for_session(wrong) is None, wrong[:80]


def test_a_form_of_another_session_is_no_form_of_this_one(doorkeeper: Authenticator) -> None:
    one, other = doorkeeper.open_session(OUR_KEY), doorkeeper.open_session(OUR_KEY)
    assert one is not None
    assert other is not None
    token = doorkeeper.csrf_token(one)
    assert doorkeeper.csrf_holds(one, token)
    assert not doorkeeper.csrf_holds(other, token)
    assert not doorkeeper.csrf_holds(one, "")
    assert not doorkeeper.csrf_holds(one, "é")


async def test_a_session_reads_with_its_cookie_and_writes_only_with_its_token(
    nobody: httpx.AsyncClient, settings: object
) -> None:
    # The secret of the tests signs; the doorkeeper of the application would make the same.
    from tests.conftest import SECRET

    keeper = Authenticator(read_api_keys(KEYS), [SECRET])
    session = keeper.open_session(OUR_KEY)
    assert session is not None
    cookie = {"Cookie": f"{COOKIE}={session}"}
    assert (await nobody.get("/sagas", headers=cookie)).status_code == 200
    refused = await nobody.post(CREATE, json=asked(), headers=cookie)
    assert (refused.status_code, problem(refused)["code"]) == (403, "forbidden")
    wrong = await nobody.post(CREATE, json=asked(), headers=cookie | {CSRF_HEADER: "x"})
    assert wrong.status_code == 403
    token = {CSRF_HEADER: keeper.csrf_token(session)}
    made = await nobody.post(CREATE, json=asked(), headers=cookie | token)
    assert made.status_code == 201
    foreign = asked(organization_id=str(uuid.uuid4()))
    assert (await nobody.post(CREATE, json=foreign, headers=cookie | token)).status_code == 403


def test_the_settings_keep_keys_as_secrets() -> None:
    settings = load_settings(_env_file=None, api_keys=KEYS)
    assert isinstance(settings.api_keys, SecretStr)
