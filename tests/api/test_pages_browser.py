"""The dashboard in a real browser: Chromium of the system, headless."""

import io
import json
import re
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zxingcpp
from PIL import Image

from evosaga.events.streams import DEAD_COMMANDS
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.api.pages.rendering import NAVIGATION
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.sagas.whatsapp.steps.routing_key import key, qr_key
from tests.api.browser import Browser, Page, browser, chromium
from tests.api.conftest import OPERATOR, OUR_KEY, OURS, THEIR_KEY, served
from tests.api.pages import hasty_parts, made, parked
from tests.support.driving import create, outcome, publish
from tests.support.waiting import eventually

CLINIC = str(uuid.uuid4())
pytestmark = pytest.mark.skipif(
    chromium() is None, reason="no Chromium on this machine: `apt-get install chromium`"
)


@pytest.fixture(scope="module")
async def chrome(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Browser]:
    """One browser for all of these tests; every page is a private window."""
    path = chromium()
    assert path is not None
    profile: Path = tmp_path_factory.mktemp("chromium")
    async with browser(path, profile) as running:
        yield running


@pytest.fixture
async def parts(settings: Settings) -> AsyncIterator[AppContext]:
    """A worker that gives up soon."""
    async with hasty_parts(settings) as parts:
        yield parts


@pytest.fixture(scope="module")
async def tab(chrome: Browser) -> AsyncIterator[Page]:
    """One tab, since each costs processes of its own."""
    async with chrome.page() as page:
        yield page


@pytest.fixture
async def page(tab: Page) -> AsyncIterator[Page]:
    """The tab as if it were new; whatever it complained about fails the test."""
    await tab.fresh()
    yield tab
    assert tab.dialogs == []
    assert tab.complaints == []
    await tab.fresh()  # whatever follows the server by itself has ended before the server


async def sign_in(page: Page, address: str, key: str) -> None:
    await page.goto(address)
    await page.fill("#key", key)
    await page.click("main button")


async def test_log_in_create_see_the_qr_and_pair(
    page: Page, address_: str, parts: AppContext, evolution: SimulatedEvolution
) -> None:
    await sign_in(page, address_, OUR_KEY)
    await page.until("No known problems.")
    await page.goto(f"{address_}/ui/new-integration")
    await page.fill("#name", "Clínica Sol")
    await page.fill("#clinic_id", CLINIC)
    await page.click("main form button")

    await page.until("Completed in")  # the page follows the saga by itself
    await page.click("#a-made")
    await page.until("Pair the phone")
    name = (await page.path()).rpartition("/")[2]

    async def scanned() -> bool:
        shot = Image.open(io.BytesIO(await page.screenshot()))
        raw = await parts.redis.get(qr_key(name))
        wanted = json.loads(raw)["code"] if raw else None
        return wanted in [found.text for found in zxingcpp.read_barcodes(shot)]

    await eventually(
        scanned, 30, every=0.5, message="a QR code on the screen that says what Evolution said"
    )
    await page.until("All three agree", "#stores")

    evolution.pair(name)
    await page.until("The phone is connected")
    assert await page.count(".qr") == 0


async def test_the_timeline_moves_while_one_looks(
    page: Page, address_: str, parts: AppContext, evolution: SimulatedEvolution
) -> None:
    evolution.arm("5xx_before", operation="create", times=None, status=503)
    command = create(name="Clínica Sol")
    await publish(parts.redis, command)
    await sign_in(page, address_, OPERATOR)
    await page.goto(f"{address_}/ui/sagas/{command['id']}")
    await page.until("held", ".timeline")
    assert await page.count(".bar.e-held") == 1
    # What a reader has opened stays open while the page moves on under it.
    await page.js("document.querySelector('#e-1 summary').click()")
    evolution.disarm()
    await page.until("Completed in")

    async def all_are_done() -> bool:
        return await page.count(".timeline .st-done") == 5

    await eventually(all_are_done)  # htmx sets the classes a moment after the text
    assert await page.js("document.querySelector('#e-1').open") is True


@pytest.mark.long  # the stranger's tour goes the same way
async def test_a_create_that_failed_is_understood_and_replayed_from_its_plan(
    page: Page, address_: str, parts: AppContext, evolution: SimulatedEvolution
) -> None:
    saga = await parked(parts, evolution, name="Clínica Sol")
    await sign_in(page, address_, OPERATOR)
    await page.until("1 saga parked", "h1")
    await page.click(".card a")
    await page.until("could not be undone", ".because")
    assert await page.count(".bar.backward") >= 2
    await page.click("#a-replay")
    await page.until("undo first", ".plan")
    evolution.disarm()
    await page.fill("#reason", "Evolution is well again")
    await page.click("form.confirm button")
    await page.until("nothing is left behind")
    assert "replayed by operator" in await page.text(".mark-list")
    assert (await outcome(parts.pool, str(saga.saga_id))).status == "compensated"


@pytest.mark.parametrize("scripts", [True, pytest.param(False, marks=pytest.mark.long)])
async def test_a_stranger_finds_a_clinic_by_three_letters_replays_and_repairs_without_a_shell(
    scripts: bool, page: Page, address_: str, parts: AppContext, evolution: SimulatedEvolution
) -> None:
    await parked(parts, evolution, name="Odonto Vida")
    drifted = await made(parts, name="Odonto Vida Nova", channel="WHATSAPP-BAILEYS")
    evolution.drop(str(drifted.instance_name))
    await page.call("Emulation.setScriptExecutionDisabled", value=not scripts)
    await sign_in(page, address_, OPERATOR)

    async def search() -> None:
        await page.fill("#find", "odo")
        await page.click("form.find button")
        await page.until("Found for odo", "h1")

    await search()
    await page.until("Odonto Vida", "section[aria-labelledby=h-parked]")
    await page.click("section[aria-labelledby=h-parked] tbody a[href^='/ui/sagas/']")
    await page.until("could not be undone", ".because")
    await page.click("#a-replay")
    await page.until("undo first", ".plan")
    evolution.disarm()
    await page.click("form.confirm button")
    await page.until("nothing is left behind", timeout=60)

    await search()
    await page.click(f"main a[href='/ui/integrations/{drifted.instance_name}']")
    await page.until("Odonto Vida Nova", "h1")
    await page.until("Compare and repair", "#stores")
    await page.click("#a-repair")
    await page.until("Repair 1 drift?", "h1")
    assert "Odonto Vida Nova" in await page.text(".drifts")
    await page.click("form.confirm button")
    await page.until("Completed in", timeout=60)


async def test_cancelling_says_what_will_be_undone_and_undoes_it(
    page: Page, address_: str, parts: AppContext, evolution: SimulatedEvolution
) -> None:
    evolution.arm("5xx_before", operation="create", times=None, status=503)
    command = create()
    await publish(parts.redis, command)
    await sign_in(page, address_, OPERATOR)
    await page.goto(f"{address_}/ui/sagas/{command['id']}")
    await page.until("held", ".timeline")
    await page.click("#a-cancel")
    await page.until("Cancel create-integration for", "h1")
    await page.fill("#reason", "it was a mistake")
    await page.click("form.confirm button")
    await page.until("Rolled back", "h1")
    assert "it was a mistake" in await page.text(".mark-list")
    assert "cancel asked for by operator" in await page.text(".mark-list")


async def test_deleting_asks_first_and_shows_that_nothing_is_left(
    page: Page, address_: str, parts: AppContext
) -> None:
    saga = await made(parts, name="Clínica Sol")
    await sign_in(page, address_, OPERATOR)
    await page.goto(f"{address_}/ui/integrations/{saga.instance_name}")
    await page.click(".titled .button")
    await page.until("no way back")
    await page.click("form.confirm button")
    await page.until("Completed in")
    await page.goto(f"{address_}/ui/integrations/{saga.instance_name}")
    await page.until("nothing is left of it", "#stores")


async def test_the_first_page_follows_and_leaves_the_focus_where_it_is(
    page: Page, address_: str, parts: AppContext
) -> None:
    await sign_in(page, address_, OPERATOR)
    await page.until("No saga began")
    await page.js("document.querySelector('#w-running').focus()")
    await made(parts)
    await page.until("1 begun")
    assert await page.js("document.activeElement.id") == "w-running"


@pytest.mark.long
async def test_two_organizations_can_not_see_each_other(
    chrome: Browser, address_: str, parts: AppContext
) -> None:
    saga = await made(parts, organization_id=str(OURS), name="Clínica Sol")
    async with chrome.page() as ours, chrome.page() as theirs:
        await sign_in(ours, address_, OUR_KEY)
        await sign_in(theirs, address_, THEIR_KEY)
        for path in ("/ui/sagas", "/ui/integrations"):
            await ours.goto(address_ + path)
            await theirs.goto(address_ + path)
            assert str(saga.instance_name) in await ours.text()
            assert str(saga.instance_name) not in await theirs.text()
        await theirs.goto(f"{address_}/ui/sagas/{saga.saga_id}")
        assert "Nothing here" in await theirs.text("h1")


async def test_without_a_script_everything_can_still_be_done(
    page: Page, address_: str, parts: AppContext
) -> None:
    await page.call("Emulation.setScriptExecutionDisabled", value=True)
    await sign_in(page, address_, OUR_KEY)
    await page.goto(f"{address_}/ui/new-integration")
    await page.fill("#name", "Clínica Sol")
    await page.fill("#clinic_id", CLINIC)
    await page.click("main form button")
    await page.until("Completed in", timeout=60)  # it reloads itself every few seconds


CORPUS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg onload=alert(1)>",
    "</title></textarea></style></script><script>alert(1)</script>",
    '<a href="javascript:alert(1)">x</a>',
    "{{7*7}}{% raw %}${7*7}<%= 7*7 %>",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<div hx-get=/ui/logout hx-trigger=load hx-on::load=alert(1)>",
    "<base href=//evil.example><meta http-equiv=refresh content='0;url=//evil.example'>",
    "\u202e\u2066<b>gnp.exe",
    "javascript:alert(1)",
)
_DANGERS = """
[...{}.querySelectorAll('*')].flatMap(e => [
  ...(/^(IFRAME|IMG|BASE|OBJECT|EMBED|STYLE)$/.test(e.tagName) ? [e.tagName] : []),
  ...(e.tagName === 'SCRIPT' && !e.src.startsWith(location.origin + '/ui/static/') ? [e.src] : []),
  ...[...e.attributes].filter(a => /^on|^style$|^hx-on|^srcdoc$/.test(a.name)).map(a => a.name),
  ...(/^(A|FORM)$/.test(e.tagName) && !(e.href || e.action).startsWith(location.origin)
      ? [e.outerHTML] : []),
])
"""
"""What a page has that only text from outside can have brought in."""


@pytest.mark.parametrize(
    "each", [False, pytest.param(True, marks=pytest.mark.long)], ids=["kinds", "each"]
)
async def test_hostile_text_in_every_field_is_only_text(
    each: bool, page: Page, address_: str, parts: AppContext, evolution: SimulatedEvolution
) -> None:
    await sign_in(page, address_, OPERATOR)
    paths = [path for _, _, path in NAVIGATION] + ["/ui/sagas?status=failed"]
    commands = [create(name=text) | {"id": f"{n} {text}"} for n, text in enumerate(CORPUS)]
    for text, command in zip(CORPUS, commands, strict=True):
        # As a name, as a command's id, as what Evolution answers, and as a reason.
        evolution.arm("reject", operation="create", times=1, message=f"{text} is required")
        await publish(parts.redis, command)
    for command in commands:
        saga = await outcome(parts.pool, command["id"])
        assert saga.status == "compensated"
        paths.append(f"/ui/sagas/{saga.saga_id}")
    hostile = await parked(parts, evolution, name=CORPUS[0])
    await parts.pool.execute(
        "UPDATE evosaga.sagas SET message = $2, code = $2, owner = $2 WHERE saga_id = $1",
        hostile.saga_id,
        CORPUS[1],
    )
    wanted = {"saga_id": str(hostile.saga_id), "reason": CORPUS[0]}
    steering = {"id": f"x {CORPUS[1]}", "type": "saga.cancel", "data": wanted}
    await publish(parts.redis, steering)
    # Rows and keys that older code, or anybody, has written.
    for number, text in enumerate(CORPUS):
        config = {"instance_name": text, "name": text, "channel": text, "webhook_url": text}
        await parts.pool.execute(_ROW, uuid.uuid4(), json.dumps(config), text, number == 0)
        quoted = await page.js(f"encodeURIComponent({json.dumps(text)})")
        if "/" not in text:
            paths.append(f"/ui/integrations/{quoted}")
        paths.append(f"/ui/sagas?q={quoted}")
        paths.append(f"/ui/sagas?instance={quoted}&organization={quoted}")
        await parts.pool.execute(
            "INSERT INTO evosaga.sightings (what, instance_name) VALUES ($1, $1)", text
        )
    nice = await made(parts, channel="WHATSAPP-BAILEYS")
    told = {f"<b>{text}": text for text in CORPUS}
    await parts.redis.set(key(str(nice.instance_name)), json.dumps(told))
    code = {"base64": CORPUS[0], "code": CORPUS[1], "pairing_code": CORPUS[2]}
    await parts.redis.set(qr_key(str(nice.instance_name)), json.dumps(code), ex=60)
    places = ("", "/stores", "/pairing", "/delete")
    paths += [f"/ui/integrations/{nice.instance_name}{place}" for place in places]
    verbs = ("", "/replay", "/cancel", "/live")
    paths += [f"/ui/sagas/{hostile.saga_id}{verb}" for verb in verbs]

    # One page of each kind is opened, and lives; its likes are only read, by the same parser,
    # unless each is to be opened.
    shown, opened = "", set()
    for path in paths:
        kind = re.sub(r"[0-9a-f-]{36}|=[^&]*|(?<=integrations/)[^/]*%.*", "…", path)
        if kind in opened and not each:
            markup = f"await (await fetch({json.dumps(path)})).text()"
            read = f"new DOMParser().parseFromString({markup}, 'text/html')"
            found, text = await page.js(
                f"(async () => {{ const page = {read}; return [{_DANGERS.format('page')}, "
                "page.body.textContent] })()"
            )
        else:
            opened.add(kind)
            await page.goto(address_ + path)
            found, text = await page.js(_DANGERS.format("document")), await page.text()
        assert found == [], path
        shown += text
    for text in CORPUS[:-2]:
        assert text in shown, f"{text} was swallowed, not shown"
    assert "\u202e" not in shown


@pytest.mark.long
async def test_every_page_fits_a_phone_a_tablet_and_a_desk(
    page: Page, address_: str, parts: AppContext, evolution: SimulatedEvolution
) -> None:
    saga = await parked(parts, evolution, name="W" * 120)
    nice = await made(parts, channel="WHATSAPP-BAILEYS", name="W" * 120)
    await sign_in(page, address_, OPERATOR)
    await parts.redis.xadd(DEAD_COMMANDS, {"data": f'{{"data": {{"name": "{"W" * 120}"}}}}'})
    paths = [path for _, _, path in NAVIGATION] + [
        f"/ui/sagas/{saga.saga_id}",
        f"/ui/sagas/{saga.saga_id}/replay",
        f"/ui/sagas/{saga.saga_id}/cancel",
        f"/ui/integrations/{nice.instance_name}",
        f"/ui/integrations/{nice.instance_name}/delete",
        "/ui/new-integration",
        "/ui/sagas/nothing",
        "/ui/search?q=WWW",
        "/ui/letters",
        "/ui/workers",
        f"/ui/selected-sagas?do=cancel&id={saga.saga_id}",
    ]
    for path in paths:
        await page.goto(address_ + path)
        for width in (1440, 768, 360):
            await page.size(width)
            assert await page.js("document.documentElement.scrollWidth") <= width, (path, width)


_ROW = """
INSERT INTO healthcare.integrations (organization_id, config, whatsapp_number, enabled)
VALUES ($1, $2, $3, $4)
"""


async def test_times_are_local_when_asked_and_updates_pause(
    page: Page, address_: str, parts: AppContext
) -> None:
    saga = await made(parts)
    await sign_in(page, address_, OPERATOR)
    await page.call("Emulation.setTimezoneOverride", timezoneId="America/Sao_Paulo")
    await page.goto(f"{address_}/ui/sagas/{saga.saga_id}")
    first = 'time[data-clock="precise"]'
    in_utc = await page.text(first)
    await page.js("document.querySelector('#local-time').click()")
    assert "UTC\N{MINUS SIGN}03:00" in await page.text("#zone")
    assert await page.text(first) != in_utc
    assert (await page.text(first))[2:] == in_utc[2:], "only the hour differs"
    await page.goto(f"{address_}/")  # it is remembered
    assert "UTC\N{MINUS SIGN}03:00" in await page.text("#zone")
    await page.js("document.querySelector('#local-time').click()")
    assert "All times are UTC" in await page.text("footer")
    await page.until("1 begun")
    await page.js("document.querySelector('#pause').click()")
    await made(parts)
    await page.until("Updates are paused since", "#stale")
    assert "1 begun" in await page.text()
    await page.js("document.querySelector('#pause').click()")
    await page.until("2 begun")
    assert await page.count("#stale[hidden]") == 1
    await page.call("Emulation.setTimezoneOverride", timezoneId="")


async def test_a_page_whose_server_is_gone_says_since_when_and_turns_grey(
    chrome: Browser, parts: AppContext
) -> None:
    async with chrome.page() as page:
        async with served(parts) as where:
            await sign_in(page, where, OPERATOR)
            await page.until("1 alive")
            assert await page.count(".stale") == 0
        await page.until("Not up to date since", timeout=60)
        await page.until("UTC: the server does not answer. What is grey is from then.")
        assert await page.count("#now.stale") == 1
