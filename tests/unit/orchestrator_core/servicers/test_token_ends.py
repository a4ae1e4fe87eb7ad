"""Warnings of tokens that expire, and what is said of them in the configuration."""

import asyncio
import datetime as dt
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from orchestrator_core.auth.tokens import Role, TokenEntry, Tokens
from orchestrator_core.config.derived import tokens
from orchestrator_core.config.loading import load_config
from orchestrator_core.config.problems import ConfigError
from orchestrator_core.config.schema import Config
from orchestrator_core.config.text import to_toml
from orchestrator_core.core.outcome import Reason
from orchestrator_core.errors import RefusalError
from orchestrator_core.servicers.token_ends import DAY_S, ExpiryWarnings, OpenStreams

END_S = 1_000 * DAY_S
HASH = "ab" * 32


def warnings_at(looks_s: list[float], days: int = 14) -> list[tuple[float, str]]:
    """What is told at each look, of a token that ends and one that does not."""
    now_s = 0.0
    known = Tokens(
        [
            TokenEntry("guest", Role.CLIENT, HASH, expires_s=END_S),
            TokenEntry("alice", Role.CLIENT, "cd" * 32),
        ]
    )
    warnings = ExpiryWarnings(lambda: known, lambda: days, lambda: now_s)
    told = []
    for now_s in looks_s:
        with capture_logs() as lines:
            warnings.look()
        told += [(now_s, str(line["event"])) for line in lines]
        assert all(line["caller"] == "guest" for line in lines)
        assert all(HASH not in str(line) for line in lines)
    return told


def test_the_log_warns_once_a_day_from_so_many_days_before_the_end() -> None:
    """AUTH-1003: and says it differently once the token is over."""
    early, first, later = END_S - 15 * DAY_S, END_S - 14 * DAY_S, END_S - 14 * DAY_S + 3_600
    day_after, over = END_S - 13 * DAY_S, END_S + 1

    told = warnings_at([early, first, later, day_after, over])

    assert told == [
        (first, "token_expires"),
        (day_after, "token_expires"),
        (over, "token_expired"),
    ]


def test_warnings_can_be_switched_off() -> None:
    """AUTH-1003: 0 days tell nothing."""
    assert warnings_at([END_S - 1, END_S + 1], days=0) == []


async def test_a_stream_that_begins_as_its_token_is_withdrawn_ends() -> None:
    """AUTH-1003: between the look at its token and its first turn other tokens may count."""
    (who,) = Tokens([TokenEntry("guest", Role.CLIENT, HASH)]).identities
    streams = OpenStreams(lambda: 0.0)
    streams.judge(Tokens([]))

    with pytest.raises(RefusalError) as caught:
        async with asyncio.timeout(10.0), streams.bounded(who):
            await asyncio.Event().wait()

    assert caught.value.refusal.reason is Reason.UNAUTHENTICATED


async def test_a_stream_ends_with_its_token_also_where_the_machine_slept_meanwhile() -> None:
    """AUTH-1003: the loop's clock stood still, so its timer is late by the sleep."""
    (who,) = Tokens([TokenEntry("guest", Role.CLIENT, HASH, expires_s=3_600.0)]).identities
    now_s = 0.0
    streams = OpenStreams(lambda: now_s)
    opened = asyncio.Event()

    async def stream() -> None:
        async with streams.bounded(who):
            opened.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(stream())
    await opened.wait()
    streams.look()
    await asyncio.sleep(0)
    before = task.done()
    now_s = 7_200.0
    streams.look()

    with pytest.raises(RefusalError) as caught:
        await asyncio.wait_for(task, 10.0)
    assert not before
    assert "expired" in caught.value.refusal.message


def config(text: str, tmp_path: Path) -> Config:
    """A configuration with one token, to which a line is added."""
    file = tmp_path / "o.toml"
    file.write_text(f'[auth.tokens.gpu]\nrole = "pool"\nsha256 = "{HASH}"\n{text}\n')
    return load_config(file, {})


def test_an_end_and_a_host_are_read_and_printed_as_they_were(tmp_path: Path) -> None:
    """AUTH-1003, AUTH-1007: an instant with its offset, a host's id."""
    read = config('expires = 2027-01-31T02:00:00+02:00\nhost_id = "gpu-1"', tmp_path)

    (identity,) = tokens(read).identities
    assert identity.expires == "2027-01-31 00:00:00+00:00"
    assert identity.expires_s == dt.datetime(2027, 1, 31, tzinfo=dt.UTC).timestamp()
    assert identity.host_id == "gpu-1"
    assert not identity.sees_all
    assert "expires = 2027-01-31T02:00:00+02:00" in to_toml(read)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("expires = 2027-01-31", "auth.tokens.gpu.expires: write a date and time with its offset"),
        ("expires = 2027-01-31T00:00:00", "auth.tokens.gpu.expires: write a date and time"),
        ('expires = "soon"', "auth.tokens.gpu.expires: write a date and time with its offset"),
        ('host_id = "a b"', "auth.tokens.gpu.host_id: 1 to 128 characters"),
        ("[auth]\njobs_visible_to = 'some'", "auth.jobs_visible_to"),
    ],
)
def test_an_end_without_its_offset_and_a_bad_host_are_named(
    tmp_path: Path, text: str, told: str
) -> None:
    """HME-003: with what to write instead."""
    with pytest.raises(ConfigError) as caught:
        config(text, tmp_path)

    assert told in str(caught.value)


def test_only_the_token_of_a_pool_can_be_bound_to_a_host(tmp_path: Path) -> None:
    """AUTH-1007: of others it would promise what nothing keeps."""
    with pytest.raises(ConfigError, match=r'auth\.tokens\.alice\.host_id: is for .*"pool"'):
        config(
            f'[auth.tokens.alice]\nrole = "client"\nhost_id = "x"\nsha256 = "{"cd" * 32}"', tmp_path
        )
