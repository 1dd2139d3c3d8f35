"""Settings from the environment (prefix ``EVOSAGA_``) and from ``.env``."""

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import (
    AliasChoices,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from pydantic_settings import SettingsError as UnreadableSetting

from evosaga.events import redis_address, urls
from evosaga.events.postgres_url import hosts_of, understood
from evosaga.events.redis_url import usable
from evosaga.orchestrator.config import field_errors
from evosaga.orchestrator.config.api_keys import read_api_keys
from evosaga.orchestrator.config.dotenv import DOTENV, DotenvError, dotenv, said_in
from evosaga.orchestrator.config.evolution_servers import (
    DEFAULT_SERVER,
    EvolutionServer,
    check_key,
    read_servers,
    refuse_twins,
)
from evosaga.orchestrator.config.legacy_names import PLACEHOLDERS_ANYWHERE, compiled
from evosaga.orchestrator.config.receivers import (
    Format,
    Receiver,
    check_secret,
    check_url,
    read_receivers,
)

_REDIS: Final = ("redis", "rediss", "unix", *redis_address.SCHEMES)
_HTTP: Final = ("http", "https")
_UNPREFIXED: Final = ("DATABASE_URL", "REDIS_URL")
"""Honoured without the prefix too, since most platforms set them."""


class SettingsError(Exception):
    """The environment is not usable: the operator must change the variable that is named."""


class Settings(BaseSettings):
    """What an operator may set. Times are in seconds."""

    model_config = SettingsConfigDict(
        env_prefix="EVOSAGA_",
        env_file=DOTENV,
        env_file_encoding="utf-8-sig",
        extra="ignore",
        frozen=True,
        populate_by_name=True,
    )

    database_url: str | None = Field(
        None, validation_alias=AliasChoices("EVOSAGA_DATABASE_URL", "DATABASE_URL")
    )
    database_replica_url: str | None = None
    """A standby from which the API reads lists, searches and charts; nothing is decided by them."""
    database_replica_lag: float = Field(5.0, ge=0.5, le=3600)
    """Seconds that it may lag; beyond that it is not read."""
    redis_url: str | None = Field(
        None, validation_alias=AliasChoices("EVOSAGA_REDIS_URL", "REDIS_URL")
    )
    redis_prefix: str = Field("", pattern=r"^[A-Za-z0-9:._-]{0,64}$")
    """Before every key, stream and channel, for those who put two databases on one Redis."""
    app: str | None = Field(None, pattern=r"^[A-Za-z0-9_.:, ]+$")
    """Domains of your own that no installed package announces: module:NAME, several by comma."""
    whatsapp: bool | None = None
    """Whether WhatsApp is run; left out: where an Evolution server is configured, or no domain of
    your own is there."""
    evolution_url: str | None = None
    evolution_api_key: SecretStr | None = None
    evolution_servers: Annotated[Mapping[str, EvolutionServer], NoDecode] = Field(
        default_factory=dict
    )
    """Further ones by name; that of ``evolution_url`` is called ``default``."""
    public_url: str | None = None
    secret_key: SecretStr | None = None
    webhook_hosts: Annotated[frozenset[str], NoDecode] = frozenset()
    api_keys: SecretStr | None = None
    log_format: Literal["console", "json"] | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    evolution_timeout: float = Field(30.0, gt=0, le=300)
    """One call to Evolution; a create with everything in its way takes 6 s."""
    evolution_concurrency: int = Field(64, ge=1, le=1000)
    """Calls to one Evolution server that one worker has out at the same time."""
    evolution_maintenance_rate: float = Field(100.0, ge=1, le=10_000)
    """Calls a second that the health check and the comparison make to one Evolution server."""
    quiet_seconds: float = Field(10.0, ge=0, le=3600)
    """An effect whose outcome is unknown may still land for this long."""
    watch_after: tuple[float, float, float, float] = (10.0, 60.0, 300.0, 1800.0)
    """When to look again for an instance whose create stayed unknown and was undone."""
    create_deadline: float = Field(900.0, ge=0)
    """A create that is not done after so long, and can still be undone, is. 0: it has for ever."""
    lease_seconds: float = Field(2.5, ge=0.5, le=60)
    """A worker that is silent for this long is taken for dead."""
    unknown_command_seconds: float = Field(30.0, ge=0, le=86400)
    """A command that no living worker knows waits for one so long before it is a dead letter."""
    capacity: int = Field(1000, ge=1, le=100_000)
    """Sagas that one worker drives at the same time."""
    organization_share: float = Field(0.5, gt=0, le=1)
    """How much of a worker's capacity one organization may use; more of its sagas wait."""
    reconcile_every: float = Field(86400.0, ge=0)
    """Seconds between two comparisons of all the stores; 0 turns it off, as for the next two."""
    orphans_every: float = Field(300.0, ge=0)
    """Seconds between two looks for instances of ours that no row names."""
    health_every: float = Field(60.0, ge=0)
    """Seconds between two looks at every integration's connection."""
    events_keep: float = Field(7 * 86400.0, ge=60)
    """Seconds that events, and those of Evolution, stay on their streams."""
    events_most_bytes: int = Field(0, ge=0)
    """Bytes of Redis memory that each of these streams may have; 0: as many as come."""
    rejected_keep: float = Field(30 * 86400.0, ge=0)
    """Seconds that a rejected saga is kept; 0: for ever."""
    rejected_most: int = Field(1000, ge=1)
    """Rejected sagas of one organization that are kept, the newest."""
    older_names: Annotated[tuple[str, ...], NoDecode] = PLACEHOLDERS_ANYWHERE
    """What older code called its instances, to find what it left behind."""
    alert_after: float = Field(900.0, ge=0)
    """Seconds that an integration may be disconnected before there is an alert; 0: never."""
    alert_url: SecretStr | None = None
    """Where it is posted. Such URLs often are a secret themselves."""
    alerts_url: SecretStr | None = None
    """Where alerts of all kinds are posted."""
    alerts_format: Format = "json"
    alerts_secret: SecretStr | None = None
    """Signs what is sent there, ``whsec_…``; without it a key is derived from ``secret_key``."""
    alerts_routing_key: SecretStr | None = Field(None, validate_default=True)
    """PagerDuty's; then ``alerts_url`` is not needed."""
    receivers: Annotated[Mapping[str, Receiver], NoDecode] = Field(default_factory=dict)
    """Further receivers of alerts and of events, by name."""
    receivers_private: bool = False
    """Whether a receiver may have a private address, this machine's included."""
    runbook_url: str = Field("/ui/runbook", pattern=r"^[!-~]{1,400}$")
    """Where alerts and ``why`` say that the runbook is; a paragraph's name is put behind ``#``.

    A path is one of the dashboard's.
    """
    metrics_port: int | None = Field(None, ge=1, le=65535)
    """Where a worker serves ``/metrics``, on ``host``; None: nowhere."""
    host: str = "127.0.0.1"
    """Where the HTTP API listens; 0.0.0.0 is for containers and behind a proxy."""
    port: int = Field(8080, ge=0, le=65535)
    api_rate: float = Field(1000.0, gt=0)
    """Requests a second that one API key may make; twice as many at once."""
    http_connections: int = Field(1000, ge=1, le=100_000)
    """HTTP connections at once; never more than half of the files that the process may open."""
    webhook_max_bytes: int = Field(136 * 1024 * 1024, ge=1024)
    """The largest webhook that is read; Evolution's own limit."""
    organization_sagas: int = Field(20, ge=1)
    """Sagas of one organization that may be under way when another is asked for over HTTP."""

    @field_validator("database_url", "database_replica_url")
    @classmethod
    def _postgres(cls, url: str | None, info: ValidationInfo) -> str | None:
        if not url:
            return None
        try:
            urls.split(url)
        except ValueError:  # its text may quote a part of the password
            raise ValueError(_UNREADABLE) from None
        for one in hosts_of(url):
            _readable(one)
        if info.field_name == "database_replica_url" and len(hosts_of(url)) > 1:
            raise ValueError("must name one standby, or a proxy in front of several")
        return understood(url)

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, url: str | None) -> str | None:
        # Not split yet: what can't be is refused below, in words that quote nothing of it.
        if url and url.partition("://")[0] in redis_address.SCHEMES:
            usable(url)
            return url
        checked = _url(url, _REDIS)
        if checked:
            usable(checked)
        return checked

    @field_validator("evolution_url", "public_url")
    @classmethod
    def _http(cls, url: str | None) -> str | None:
        checked = _url(url, _HTTP)
        if checked and (urlsplit(checked).query or urlsplit(checked).fragment):
            raise ValueError("must not have a query or a fragment")
        return checked.rstrip("/") if checked else None

    @field_validator("evolution_servers", mode="before")
    @classmethod
    def _servers(cls, value: Any, info: ValidationInfo) -> Any:
        servers = read_servers(value)
        refuse_twins(info.data.get("evolution_url"), servers)
        return servers

    @field_validator("webhook_hosts", mode="before")
    @classmethod
    def _hosts(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        hosts = [host.strip().lower() for host in value.split(",") if host.strip()]
        if bad := [host for host in hosts if not re.fullmatch(r"[a-z0-9._-]+", host)]:
            raise ValueError(f"{bad[0]!r} is not a host name (no port, no scheme)")
        return frozenset(hosts)

    @field_validator("older_names", mode="before")
    @classmethod
    def _patterns(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = tuple(part.strip() for part in value.split(",") if part.strip())
        for pattern in value:
            compiled(pattern)
        return value

    @field_validator("alert_url")
    @classmethod
    def _posted_to(cls, value: SecretStr | None) -> SecretStr | None:
        url = _url(value.get_secret_value(), _HTTP) if value else None
        return SecretStr(url) if url else None

    @field_validator("alerts_url", "alerts_secret", "alerts_routing_key")
    @classmethod
    def _receiver(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is None or not value.get_secret_value().strip():
            return None
        checks = {"alerts_url": check_url, "alerts_secret": check_secret}
        return checks.get(info.field_name or "", lambda same: same)(value)

    @field_validator("receivers", mode="before")
    @classmethod
    def _receivers(cls, value: Any) -> Any:
        return read_receivers(value)

    @field_validator("metrics_port", mode="before")
    @classmethod
    def _no_port(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("alerts_routing_key")
    @classmethod
    def _complete(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is None and info.data.get("alerts_format") == "pagerduty":
            raise ValueError("is not set, and EVOSAGA_ALERTS_FORMAT is pagerduty")
        return value

    @field_validator("evolution_api_key", "api_keys")
    @classmethod
    def _empty_is_unset(cls, value: SecretStr | None) -> SecretStr | None:
        return value if value and value.get_secret_value().strip() else None

    @field_validator("evolution_api_key")
    @classmethod
    def _sendable(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            check_key(value.get_secret_value(), "the key")
        return value

    @field_validator("api_keys")
    @classmethod
    def _readable_keys(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            read_api_keys(value.get_secret_value())
        return value

    @field_validator("secret_key")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value().strip():
            return None
        parts = split_secrets(value)
        if not parts or any(len(part.encode()) < 32 for part in parts):
            raise ValueError("every key needs at least 32 bytes; make one: openssl rand -hex 32")
        return value


def servers_of(settings: Settings) -> dict[str, EvolutionServer]:
    """Every Evolution server by name; ``default`` comes first, where it is configured."""
    url, key = settings.evolution_url, settings.evolution_api_key
    default = {DEFAULT_SERVER: EvolutionServer(url, key)} if url and key else {}
    return default | dict(settings.evolution_servers)


def split_secrets(value: SecretStr) -> list[str]:
    """The comma-separated secrets, the one for what is new first."""
    return [part.strip() for part in value.get_secret_value().split(",") if part.strip()]


def load_settings(**overrides: Any) -> Settings:
    """Read the settings. Raises ``SettingsError`` with one line that names the variable."""
    try:
        for name, value in said_in(os.environ).items():
            if not value.isascii() and not _encodable(value):
                raise SettingsError(f"{name}: is no UTF-8")
        given = overrides if "_env_file" in overrides else {"_env_file": dotenv(), **overrides}
        return Settings(**given)
    except DotenvError as error:
        raise SettingsError(str(error)) from None
    except UnreadableSetting as error:
        # Its text names the field and not what is wrong with the value.
        found = re.search(r'field "(\w+)"', str(error))
        variable = f"EVOSAGA_{found[1].upper()}" if found else "a setting"
        raise SettingsError(f"{variable}: must be JSON, such as [1, 2]") from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = str(first["loc"][0]).upper()
        # Fields with aliases are reported under the alias that was used.
        variable = name if name in _UNPREFIXED else f"EVOSAGA_{name}"
        variable = variable.replace("EVOSAGA_EVOSAGA_", "EVOSAGA_")
        raise SettingsError(f"{variable}: {field_errors.said(first)}") from None


_UNREADABLE: Final = (
    "can't be read as a URL: a port is a number, and in a user or a password / ? # [ ] @ : % must "
    "be percent-encoded (@ is %40)"
)


def _misread(parts: SplitResult) -> bool:
    """Whether a password went on behind what was taken for the server's address."""
    behind = parts.path + (parts.query if "=" not in parts.query else "")
    return bool("@" in behind or parts.fragment)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes that were no UTF-8
        return False
    return True


def _readable(url: str) -> SplitResult:
    """Its parts. Raises ``ValueError`` where part of a password would be misread."""
    try:
        parts = urls.split(url)
        _ = parts.port  # which raises when it is none
    except ValueError:  # its text may quote a part of the password
        raise ValueError(_UNREADABLE) from None
    if parts.scheme not in (*_HTTP, "unix") and _misread(parts):
        raise ValueError(_UNREADABLE)
    return parts


def _url(url: str | None, schemes: tuple[str, ...]) -> str | None:
    if not url:
        return None
    parts = _readable(url)
    if parts.scheme not in schemes:
        raise ValueError(f"must start with {' or '.join(f'{s}://' for s in schemes)}")
    if parts.scheme in _HTTP and not parts.hostname:
        raise ValueError("has no host")
    return url
