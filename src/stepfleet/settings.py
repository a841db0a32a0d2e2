"""Settings: one table of names, defaults and ranges; read from argument, environment, pyproject.

Layer: above `address` and `errors` only.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ByteSize,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from stepfleet.address import check_redis_url, mask_url
from stepfleet.errors import SettingsError

#: Every environment variable of a setting starts so.
ENV_PREFIX: Final = "STEPFLEET_"

#: Seconds.
_HOUR: Final = 3600
_UNIT_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?\s*")

# Names the server program that `stepfleet dev` starts: read there, not a setting of the fleet.
_SERVER_PROGRAM: Final = "REDIS_SERVER"

# Kubernetes gives every pod variables such as STEPFLEET_REDIS_SERVICE_HOST for a service that is
# called stepfleet-redis: they are not misspelt settings, and refusing them would stop every pod.
_SERVICE_LINK: Final = re.compile(
    r"(.+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)


def _duration(value: object) -> object:
    """Read `15`, `15s`, `500ms`, `24h`; leave every other form to pydantic."""
    if isinstance(value, str) and (match := _DURATION.fullmatch(value)):
        return float(match[1]) * _UNIT_SECONDS[match[2] or "s"]
    return value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _valid_secret_url(value: SecretStr) -> SecretStr:
    check_redis_url(value.get_secret_value())
    return value


_Duration = Annotated[timedelta, BeforeValidator(_duration)]
_RedisUrl = Annotated[SecretStr, AfterValidator(_valid_secret_url)]


def _between(default: Any, low: Any, high: Any, description: str) -> Any:
    """Return a field for a value from `low` to `high`."""
    return Field(default=default, ge=low, le=high, description=description)


def _time(default: float, low: float, high: float, description: str) -> Any:
    """Return a field for a duration; all in seconds."""
    return _between(
        timedelta(seconds=default), timedelta(seconds=low), timedelta(seconds=high), description
    )


#: Settings that are tables, and of what.
_TABLES: Final = {
    "workflows": "a table of `module:object`",
    "schedules": "a table of tables",
}


class Settings(BaseSettings):
    """What a client, a worker or the operator's tool is told; immutable.

    A value comes from the argument, else the environment variable `STEPFLEET_<NAME>`, else
    `[tool.stepfleet]` in the nearest pyproject.toml, else the default. An argument of None counts
    as not given.

    Raises:
        SettingsError: a name is unknown or a value is not allowed; says where it came from.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    redis_url: _RedisUrl | None = Field(
        default=None,
        description="The Redis or Valkey server. `memory://` runs everything in this process.",
    )
    namespace: str = Field(
        default="default",
        pattern=r"^[A-Za-z0-9_.-]{1,64}$",
        description="Separates fleets that share a server: the first part of every key.",
    )
    lease: _Duration = _time(
        15, 1, _HOUR, "A worker that is silent for this long has lost its deliveries to the others."
    )
    sweep: _Duration = _time(
        5, 0.1, _HOUR, "How often a worker looks for lost deliveries, due timers and expired keys."
    )
    max_deliveries: int = _between(
        3,
        1,
        1_000_000,
        "A delivery that was lost this often with its worker becomes a dead letter.",
    )
    retention: _Duration = _time(
        24 * _HOUR, 1, 365 * 24 * _HOUR, "How long a run can be read after its end."
    )
    concurrency: int = _between(100, 1, 10_000, "Steps that one worker process runs at once.")
    threads: int = _between(
        16, 1, 1_000, "Threads of one worker process for steps that are not async."
    )
    drain_timeout: _Duration = _time(
        30, 0, 24 * _HOUR, "How long a worker that was told to stop lets its steps finish."
    )
    event_limit: ByteSize = _between(
        ByteSize(1024 * 1024),
        1024,
        64 * 1024 * 1024,
        "The largest encoded event, result or store value.",
    )
    depth_limit: int = _between(64, 4, 256, "Levels of nesting inside one event or value.")
    stream_limit: int = _between(
        10_000, 1, 1_000_000, "Public events kept per run; older ones are trimmed."
    )
    history: Annotated[Literal["off", "on"], BeforeValidator(_lower)] = Field(
        default="off",
        description="Runs keep a row about each commit: for internal events and drawings of what "
        "they did.",
    )
    pending_runs_limit: int = _between(
        1_000_000,
        1,
        100_000_000,
        "Runs that may be live at once; a client that starts one more gets `Overloaded`.",
    )
    fan_out_limit: int = _between(
        100_000, 1, 10_000_000, "Events that one execution of a step may send and return."
    )
    collect_limit: int = _between(
        10_000, 1, 1_000_000, "Events that one `collect_events` may wait for."
    )
    waiters_limit: int = _between(
        1_000, 1, 1_000_000, "Steps of one run that may wait for events at once; one more fails."
    )
    deliveries_limit: int = _between(
        1_000_000,
        1,
        1_000_000_000,
        "Deliveries that one run may have in all; a step that adds one more fails its run.",
    )
    inbox_limit: int = _between(
        100,
        1,
        10_000,
        "Events kept per run that nobody waits for yet; the oldest is dropped first.",
    )
    connect_timeout: _Duration = _time(
        10, 0.1, _HOUR, "How long to try to reach Redis at the start."
    )
    metrics_port: int = _between(
        0,
        0,
        65_535,
        "Where a worker serves `/metrics`, `/healthz` and `/readyz` over HTTP; 0: nowhere.",
    )
    metrics_address: str = Field(
        default="127.0.0.1",
        pattern=r"^[A-Za-z0-9_.:%-]{1,255}$",
        description="The address of that port: `0.0.0.0` for every network.",
    )
    tracing: Annotated[Literal["auto", "on", "off"], BeforeValidator(_lower)] = Field(
        default="auto",
        description="OpenTelemetry spans. `auto`: when the program has configured a tracer provider.",
    )
    log_level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"], BeforeValidator(_lower)
    ] = Field(default="info", description="The least serious log line that the commands print.")
    log_format: Annotated[Literal["auto", "console", "json"], BeforeValidator(_lower)] = Field(
        default="auto",
        description="`auto` is `console` on a terminal, else `json` (one object a line).",
    )
    workflows: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=dict,
        description='The targets of a worker that is given none: `{name = "module:object"}`.',
    )
    schedules: Annotated[dict[str, dict[str, Any]], NoDecode] = Field(
        default_factory=dict,
        description="Runs that the scheduler starts: `{name = {workflow = ..., hour = ...}}`.",
    )

    _origins: dict[str, str] = PrivateAttr(default_factory=dict[str, str])

    def __init__(self, **arguments: Any) -> None:
        arguments = {name: value for name, value in arguments.items() if value is not None}
        _refuse_unknown(arguments, "argument", str)
        _refuse_unknown(_own_variables(), "environment variable", _variable)
        path, table = _project_table()
        _refuse_unknown(table, f"key of [tool.stepfleet] in {path}", str)
        origins = _origins_of(arguments, path, table)
        try:
            super().__init__(**arguments)
        except ValidationError as error:
            values = table | _by_field(_own_variables()) | arguments
            raise SettingsError(_explain(error, values, origins)) from None
        self._origins = origins

    @field_validator("*", mode="before")
    @classmethod
    def _no_setting_is_true_or_false(cls, value: object) -> object:
        # pydantic would read `lease = true` as one second
        if isinstance(value, bool):
            raise ValueError("not a number or a word")  # noqa: TRY004 - pydantic wants a ValueError
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Name the sources, first wins."""
        return init_settings, env_settings, _ProjectTable(settings_cls)

    def origin(self, name: str) -> str:
        """Say where the value of a setting comes from: `default` when nobody gave one."""
        return self._origins.get(name, "default")


def resolve_redis_url(
    argument: str | None, settings: Settings, *, dev_server: Callable[[Path], str | None]
) -> str:
    """Return the URL of the fleet: argument, environment, file, this folder's development server.

    `dev_server` returns the URL of a folder's running server; it is asked last.

    Raises:
        SettingsError: none of them gives a URL, or the one that does is wrong.
    """
    own = None if settings.redis_url is None else settings.redis_url.get_secret_value()
    from_file = settings.origin("redis_url").startswith("[")
    candidates = (
        ("the argument", argument),
        (settings.origin("redis_url"), None if from_file else own),
        ("environment variable REDIS_URL", os.environ.get("REDIS_URL")),
        (settings.origin("redis_url"), own),
    )
    for origin, url in candidates:
        if not url:
            continue
        try:
            return check_redis_url(url)
        except ValueError as error:
            raise SettingsError(f"redis_url = {mask_url(url)} from {origin}: {error}") from None
    if url := dev_server(Path.cwd()):
        return url
    raise SettingsError(
        "no Redis URL is given. Give one of: the argument --redis-url redis://host:6379/0; "
        "STEPFLEET_REDIS_URL or REDIS_URL in the environment; redis_url in [tool.stepfleet] of "
        "pyproject.toml; or start a server for this folder with `stepfleet dev`"
    )


def settings_table() -> str:
    """Return the table of all settings in Markdown, as docs/reference/settings.md shows it."""
    rows = [
        "| setting | environment variable | default | allowed | what it does |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, field in Settings.model_fields.items():
        variable = "-" if name in _TABLES else f"`{_variable(name)}`"
        default = field.get_default(call_default_factory=True, validated_data={})
        cells = (f"`{name}`", variable, _shown(default), _allowed(name, field), field.description)
        rows.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(rows) + "\n"


class _ProjectTable(PydanticBaseSettingsSource):
    """`[tool.stepfleet]` of the nearest pyproject.toml as the last source."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        raise AssertionError("every value is given at once")

    def __call__(self) -> dict[str, Any]:
        return _project_table()[1]


def _project_table() -> tuple[Path | None, dict[str, Any]]:
    """Return the nearest pyproject.toml and its `[tool.stepfleet]`, empty when there is none."""
    here = Path.cwd()
    paths = (folder / "pyproject.toml" for folder in (here, *here.parents))
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None, {}
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error
    table: object = document.get("tool", {}).get("stepfleet", {})
    if not isinstance(table, dict):
        raise SettingsError(f"tool.stepfleet in {path} is a table: [tool.stepfleet]")
    return path, {str(key): value for key, value in table.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def _own_variables() -> dict[str, str]:
    """Return the environment's variables with our prefix and a value, without the prefix."""
    own = {
        name[len(ENV_PREFIX) :]: value
        for name, value in os.environ.items()
        if value and name.upper().startswith(ENV_PREFIX)
    }
    return {
        name: value
        for name, value in own.items()
        if name != _SERVER_PROGRAM and not _SERVICE_LINK.fullmatch(name)
    }


def _by_field(variables: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in variables.items()}


def _variable(name: str) -> str:
    return ENV_PREFIX + name.upper()


def _refuse_unknown(names: Mapping[str, object], kind: str, spell: Any) -> None:
    known = list(Settings.model_fields)
    for name in names:
        if name.lower() in known and (name in known or spell is _variable):
            continue
        close = difflib.get_close_matches(name.lower(), known, n=1)
        hint = (
            f"did you mean {spell(close[0])}?"
            if close
            else "known: " + ", ".join(spell(field) for field in known)
        )
        raise SettingsError(f"unknown {kind} {spell(name)}: {hint}")


def _origins_of(
    arguments: Mapping[str, object], path: Path | None, table: Mapping[str, object]
) -> dict[str, str]:
    return (
        dict.fromkeys(table, f"[tool.stepfleet] in {path}")
        | {name: f"environment variable {_variable(name)}" for name in _by_field(_own_variables())}
        | dict.fromkeys(arguments, "the argument")
    )


def _explain(error: ValidationError, values: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """Name each wrong setting, its value, where it came from and what is allowed."""
    lines: list[str] = []
    for detail in error.errors(include_url=False, include_context=False):
        name = str(detail["loc"][0])
        field = Settings.model_fields[name]
        reason = f"allowed is {_allowed(name, field)}"
        if name == "redis_url":
            reason = detail["msg"].removeprefix("Value error, ")
        line = f"{name} = {_given(values.get(name))} from {origins[name]}: {reason}"
        if line not in lines:
            lines.append(line)
    return "; ".join(lines)


def _given(value: object) -> str:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    return mask_url(value) if isinstance(value, str) else repr(value)


def _allowed(name: str, field: FieldInfo) -> str:
    """Say in words what a field takes, from the constraints it is declared with."""
    if name == "redis_url":
        return "`redis://`, `rediss://`, `redis+sentinel://`, `unix://` or `memory://`"
    if name == "namespace":
        return "1 to 64 of `A-Z a-z 0-9 _ . -`"
    if name == "metrics_address":
        return "an IP address or a host name"
    if name in _TABLES:
        return f"{_TABLES[name]}, in pyproject.toml only"
    if choices := get_args(field.annotation):
        return ", ".join(f"`{choice}`" for choice in choices)
    bounds = {
        side: bound
        for part in field.metadata
        for side in ("ge", "le")
        if (bound := getattr(part, side, None)) is not None
    }
    if field.annotation is ByteSize:
        bounds = {side: ByteSize(bound) for side, bound in bounds.items()}
    return f"{_shown(bounds['ge'])} to {_shown(bounds['le'])}"


def _shown(value: object) -> str:
    match value:
        case None | {}:
            return "-"
        case timedelta():
            return _in_words(value.total_seconds())
        case ByteSize():
            return value.human_readable(separator=" ").replace(".0 ", " ")
        case int():
            return f"{value:,}"
        case _:
            return f"`{value}`"


def _in_words(seconds: float) -> str:
    """Write a duration in the largest unit that keeps it a whole number, else in seconds."""
    for unit in ("d", "h", "m"):
        if seconds >= _UNIT_SECONDS[unit] and seconds % _UNIT_SECONDS[unit] == 0:
            return f"{seconds / _UNIT_SECONDS[unit]:g} {unit}"
    return f"{seconds:g} s"
