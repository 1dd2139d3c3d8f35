"""Whoever shows a wrong token is told of where it matters. One line a minute for all strangers, so
this needs a server that nobody has been refused by.
"""

import pytest

from tests.whatsapp.webhooks.conftest import House

CLOSE = {"state": "close", "statusReason": 401}


async def test_a_wrong_token_for_one_of_ours_is_told_and_strangers_fill_no_log(
    house: House, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    name = await house.integration(channel="EVOLUTION")
    for n in range(5):
        assert (await house.deliver(name, data=CLOSE, token="wrong")).status_code == 401
        assert (await house.deliver(f"nobody-{n}", data=CLOSE, token="wrong")).status_code == 401
        assert (await house.post("/webhooks/evolution?token=x", {}, {})).status_code == 401
    said = caplog.text + "".join(capsys.readouterr())
    (line,) = [line for line in said.splitlines() if "webhook refused" in line]
    assert name in line
    assert "unauthorized" in line
    assert said.count("webhooks_unauthorized") == 1
