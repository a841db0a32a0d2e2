"""What a user may set, where a value comes from, and what a mistake says."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from stepfleet.address import check_redis_url, mask_url, sentinel_url
from stepfleet.errors import SettingsError
from stepfleet.settings import Settings, resolve_redis_url, settings_table

DOCS = Path(__file__).parents[2] / "docs" / "reference" / "settings.md"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory and an environment without settings."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("STEPFLEET_") or name == "REDIS_URL":
            monkeypatch.delenv(name)
    return tmp_path


def write_table(folder: Path, *lines: str) -> None:
    folder.joinpath("pyproject.toml").write_text("\n".join(["[tool.stepfleet]", *lines]))


def test_without_any_input_the_defaults_hold() -> None:
    settings = Settings()

    assert settings.namespace == "default"
    assert settings.lease == timedelta(seconds=15)
    assert settings.event_limit == 1024 * 1024
    assert settings.origin("lease") == "default"


def test_argument_wins_over_environment_over_file_over_default(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table(folder, "threads = 2", "concurrency = 3", "max_deliveries = 4")
    monkeypatch.setenv("STEPFLEET_CONCURRENCY", "30")
    monkeypatch.setenv("STEPFLEET_MAX_DELIVERIES", "40")

    settings = Settings(max_deliveries=400)

    assert settings.max_deliveries == 400
    assert settings.concurrency == 30
    assert settings.threads == 2
    assert settings.origin("max_deliveries") == "the argument"
    assert settings.origin("concurrency") == "environment variable STEPFLEET_CONCURRENCY"
    assert settings.origin("threads").startswith("[tool.stepfleet] in ")


def test_an_argument_of_none_counts_as_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPFLEET_THREADS", "5")

    assert Settings(threads=None).threads == 5


def test_an_empty_variable_counts_as_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPFLEET_THREADS", "")
    monkeypatch.setenv("STEPFLEET_UNKNOWN", "")

    assert Settings().threads == 16


def test_only_the_nearest_pyproject_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table(folder, "threads = 7")
    inner = folder / "app" / "flows"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert Settings().threads == 7

    inner.parent.joinpath("pyproject.toml").write_text("[project]\nname = 'app'\n")
    assert Settings().threads == 16


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("20", 20), ("1.5", 1.5), ("2500ms", 2.5), ("3m", 180), ("1h", 3600), (2, 2), ("PT4S", 4)],
)
def test_a_duration_is_seconds_or_carries_its_unit(given: str | float, seconds: float) -> None:
    assert Settings(lease=given).lease == timedelta(seconds=seconds)


def test_a_size_may_carry_its_unit() -> None:
    assert Settings(event_limit="2 MiB").event_limit == 2 * 1024 * 1024


def test_words_are_read_in_any_case() -> None:
    assert Settings(log_level="WARNING").log_level == "warning"


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings().threads = 3


def test_the_table_of_workflows_is_read_from_the_file(folder: Path) -> None:
    write_table(folder, "[tool.stepfleet.workflows]", 'jokes = "app.flows:JokeFlow"')

    assert Settings().workflows == {"jokes": "app.flows:JokeFlow"}


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("lease", "0.2", "1 s to 1 h"),
        ("lease", "soon", "1 s to 1 h"),
        ("concurrency", "0", "1 to 10,000"),
        ("concurrency", "abc", "1 to 10,000"),
        ("event_limit", "1GiB", "1 KiB to 64 MiB"),
        ("namespace", "my app", "1 to 64 of"),
        ("namespace", "ends-in-newline\n", "1 to 64 of"),
        ("log_format", "xml", "`auto`, `console`, `json`"),
        ("workflows", "a:b", "in pyproject.toml only"),
    ],
)
def test_a_bad_value_is_named_with_its_origin_and_what_is_allowed(
    name: str, value: str, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"STEPFLEET_{name.upper()}", value)

    with pytest.raises(SettingsError) as caught:
        Settings()

    message = str(caught.value)
    start = f"{name} = {value} from environment variable STEPFLEET_{name.upper()}: "
    assert message.startswith(start)
    assert allowed in message


def test_all_bad_values_are_named_at_once(folder: Path) -> None:
    write_table(folder, "threads = 0", "lease = true")

    with pytest.raises(SettingsError, match=r"lease = True .*; threads = 0 from \[tool"):
        Settings()


def test_an_unknown_key_of_the_file_says_what_was_meant(folder: Path) -> None:
    write_table(folder, "concurency = 3")

    with pytest.raises(SettingsError, match=r"unknown key .*concurency: did you mean concurrency"):
        Settings()


def test_an_unknown_variable_says_what_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPFLEET_LEESE", "3")

    with pytest.raises(SettingsError, match=r"STEPFLEET_LEESE: did you mean STEPFLEET_LEASE\?"):
        Settings()


def test_an_unknown_name_like_nothing_lists_what_is_known() -> None:
    with pytest.raises(SettingsError, match=r"unknown argument zzzz: known: redis_url, namespace"):
        Settings(zzzz=1)


@pytest.mark.parametrize(
    "name",
    [
        "STEPFLEET_PORT",
        "STEPFLEET_SERVICE_HOST",
        "STEPFLEET_REDIS_SERVICE_PORT_REDIS",
        "STEPFLEET_REDIS_PORT_6379_TCP_ADDR",
        "STEPFLEET_REDIS_SERVER",
    ],
)
def test_variables_of_kubernetes_services_and_of_the_dev_server_are_not_settings(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "10.0.0.1")

    assert Settings().namespace == "default"


def test_a_broken_pyproject_is_named(folder: Path) -> None:
    folder.joinpath("pyproject.toml").write_text("[tool.stepfleet\n")

    with pytest.raises(SettingsError, match=r"pyproject\.toml cannot be read"):
        Settings()


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://:secret@host:6379/0", "redis://:***@host:6379/0"),
        ("rediss://user:secret@host", "rediss://user:***@host"),
        ("redis://:se:cr/et@with@host", "redis://:***@host"),
        ("unix:///s.sock?db=1&password=secret&x=1", "unix:///s.sock?db=1&password=***&x=1"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis+sentinel://u:secret@a:1,b:2/orders", "redis+sentinel://u:***@a:1,b:2/orders"),
        (
            "redis+sentinel://:secret@a/orders?sentinel_username=u&sentinel_password=other&db=1",
            "redis+sentinel://:***@a/orders?sentinel_username=u&sentinel_password=***&db=1",
        ),
    ],
)
def test_a_masked_url_shows_everything_but_the_password(url: str, masked: str) -> None:
    assert mask_url(url) == masked


@pytest.mark.parametrize(
    "url",
    [
        "redis://host",
        "redis://user:p%40ss@host:6380/3",
        "rediss://[::1]:6379/0?ssl_cert_reqs=none",
        "unix:///run/redis.sock?db=2",
        "redis+sentinel://one:26379,two/orders",
        "rediss+sentinel://user:p%40ss@[::1]:26380/orders/3?ssl_cert_reqs=none",
        "memory://",
    ],
)
def test_a_url_that_a_client_understands_is_accepted(url: str) -> None:
    assert check_redis_url(url) == url


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://:secret@host", "the URL starts with redis://"),
        ("redis://:secret@host:port", "the port or host cannot be read"),
        ("redis://:secret@host:70000", "the port or host cannot be read"),
        ("redis://:secret@host/abc", "the database behind the / is a number"),
        ("redis://", "names a host"),
        ("unix://", "names a socket"),
        ("memory://secret", "nothing behind it"),
        ("localhost:6379", "the URL starts with redis://"),
        ("redis+sentinel://:secret@host:26379", "the name of the master stands behind"),
        ("redis+sentinel://:secret@host:port/orders", "a host or port of a Sentinel"),
        ("redis+sentinel://:secret@host,,other/orders", "a host or port of a Sentinel"),
        ("redis+sentinel://:secret@host/orders/abc", "the database behind the / is a number"),
    ],
)
@pytest.mark.parametrize("place", ["argument", "STEPFLEET_REDIS_URL", "REDIS_URL"])
def test_a_bad_url_is_refused_without_showing_the_password(
    url: str, reason: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place != "argument":
        monkeypatch.setenv(place, url)

    with pytest.raises(SettingsError) as caught:
        resolve_redis_url(url if place == "argument" else None, Settings(), dev_server=no_server)

    assert reason in str(caught.value)
    assert place in str(caught.value)
    assert ":secret" not in str(caught.value)


def test_a_url_of_sentinels_says_where_they_are_and_what_they_watch() -> None:
    url = "rediss+sentinel://user:pass@one:26380,two,[::1]:1/orders/3?ssl_cert_reqs=none"

    assert sentinel_url(url) == (
        (("one", 26380), ("two", 26379), ("::1", 1)),
        "orders",
        "rediss://user:pass@master/3?ssl_cert_reqs=none",
    )
    assert sentinel_url("redis://host") is None


def test_the_secret_is_not_in_the_representation() -> None:
    assert "secret" not in repr(Settings(redis_url="redis://:secret@host"))


def no_server(folder: Path) -> None:
    """Stand for a folder without a development server."""


def test_the_url_comes_from_the_first_place_that_gives_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(argument: str | None = None) -> str:
        return resolve_redis_url(argument, Settings(), dev_server=lambda at: f"unix://{at}/r.sock")

    assert resolve() == f"unix://{folder}/r.sock"
    write_table(folder, 'redis_url = "redis://file"')
    assert resolve() == "redis://file"
    monkeypatch.setenv("REDIS_URL", "redis://application")
    assert resolve() == "redis://application"
    monkeypatch.setenv("STEPFLEET_REDIS_URL", "redis://environment")
    assert resolve() == "redis://environment"
    assert resolve("redis://argument") == "redis://argument"


def test_without_a_url_the_error_lists_every_place() -> None:
    with pytest.raises(SettingsError) as caught:
        resolve_redis_url(None, Settings(), dev_server=no_server)

    for place in ("--redis-url", "STEPFLEET_REDIS_URL", "REDIS_URL", "[tool.stepfleet]", "dev"):
        assert place in str(caught.value)


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_the_documented_table_is_current() -> None:
    assert settings_table() in DOCS.read_text(), (
        "put the output of `.venv/bin/python -c 'from stepfleet.settings import settings_table; "
        "print(settings_table())'` into docs/reference/settings.md"
    )
