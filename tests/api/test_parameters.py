"""What stands behind the question mark: nothing that a route does not look at passes unnoticed."""

from datetime import UTC, datetime, timedelta

import httpx
import pytest

from tests.api.conftest import CREATE, asked, problem


async def test_a_parameter_that_a_route_does_not_have_is_refused_by_name(
    operator: httpx.AsyncClient, subtests: pytest.Subtests
) -> None:
    for address, name, known in (
        ("/integrations?bogus=1", "bogus", "organization_id, search, status, server"),
        ("/sagas?statuss=failed", "statuss", "status, "),
        ("/sagas/x/events?after=3", "after", "limit, cursor"),
        ("/sagas/x?verbose=1", "verbose", "it takes none"),
    ):
        with subtests.test(address=address):
            answer = await operator.get(address)
            told = problem(answer)
            refused = (answer.status_code, told["code"], told["parameter"])
            assert refused == (422, "invalid_data", name)
            assert known in told["detail"]


async def test_a_parameter_that_is_given_twice_is_refused(operator: httpx.AsyncClient) -> None:
    answer = await operator.get("/sagas?status=failed&status=running")
    assert (answer.status_code, problem(answer)["code"]) == (422, "invalid_data")
    assert "2 times" in answer.json()["detail"]


async def test_who_has_no_key_learns_nothing_of_parameters(nobody: httpx.AsyncClient) -> None:
    assert (await nobody.get("/sagas?statuss=failed")).status_code == 401


async def test_the_parameters_that_there_are_do_what_they_say(operator: httpx.AsyncClient) -> None:
    made = await operator.post(f"{CREATE}?wait=20", json=asked())
    assert made.status_code == 201
    page = (await operator.get("/sagas?limit=1&status=completed")).json()
    assert [saga["saga_id"] for saga in page["sagas"]] == [made.json()["saga_id"]]
    gone = await operator.delete(f"/integrations/evolution/{made.json()['instance_name']}?wait=20")
    assert gone.status_code == 200


async def test_since_takes_what_the_command_line_takes(operator: httpx.AsyncClient) -> None:
    made = (await operator.post(CREATE, json=asked())).json()["saga_id"]
    ago = datetime.now(UTC) - timedelta(hours=1)
    for since in ("2h", "30m", "7d", ago.isoformat(), f"{ago:%Y-%m-%dT%H:%MZ}"):
        page = (await operator.get("/sagas", params={"since": since})).json()
        assert [saga["saga_id"] for saga in page["sagas"]] == [made], since
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    assert (await operator.get("/sagas", params={"since": later})).json()["sagas"] == []
    for nonsense in ("yesterday", "2w", "1735689600", "999999d", "0001-01-01T00:00+14:00", ""):
        answer = await operator.get("/sagas", params={"since": nonsense})
        assert (answer.status_code, problem(answer)["code"]) == (422, "invalid_data"), nonsense
        assert "write 2025-12-05T12:00Z, 30m, 2h or 7d" in answer.json()["detail"]
