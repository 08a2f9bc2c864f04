"""Flower's doors: a mistake of its authentication is refused at its start, with what to do.

Flower itself starts with most of them, and then lets nobody in, answers with errors, or lets
everybody in. No message has a value in it.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from celery.utils.imports import symbol_by_name
from flower.utils import strtobool
from flower.utils.authentication import validate_auth_option

from babylon_tasks.errors import UserError
from babylon_tasks.text import one_line

log = logging.getLogger(__name__)

_PREFIX = "FLOWER_"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_BASIC = "FLOWER_BASIC_AUTH (--basic-auth)"
_API = "FLOWER_UNAUTHENTICATED_API"
_OAUTH_KEYS = ("oauth2_key", "oauth2_secret", "oauth2_redirect_uri")
# Who mistypes one of these believes that a door is shut.
_OF_DOORS = {"basic_auth", "auth", "auth_provider", "unauthenticated_api", "address", *_OAUTH_KEYS}
# Read by Flower from the environment alone.
_NO_OPTIONS = {
    "unauthenticated_api",
    "gitlab_auth_allowed_groups",
    "gitlab_min_access_level",
    "oauth2_okta_base_url",
}
# What Kubernetes sets for a service of the name `flower`.
_OF_KUBERNETES = ("service_", "port_")
# Anybody may have an address there.
_OPEN_TO_ALL = {
    *("gmail.com", "googlemail.com", "outlook.com", "hotmail.com", "live.com", "yahoo.com"),
    *("icloud.com", "proton.me", "protonmail.com", "gmx.com", "gmx.de", "mail.ru", "qq.com"),
}


def require_sound_doors(
    options: Any,
    environment: Mapping[str, str],
    arguments: Sequence[str],
    assigned: Sequence[str] = (),
) -> None:
    """Refuse settings that do not shut Flower's doors as whoever wrote them believes.

    `options` are Flower's, with the environment's and the command line's in them; `arguments` are
    those after `flower` on the command line, `assigned` the names in the flowerconfig.py. Other
    names that Flower does not know are logged, but for those of that file: it may need more.

    Raises:
        UserError: A person must change the settings.
    """
    _require_known_names(options, environment, arguments)
    _require_known_assigned(options, assigned)
    if options.basic_auth:  # unset: no entry; empty: one that is empty
        _require_basic(options.basic_auth)
    if options.auth:
        _require_oauth(options, environment)
    elif "FLOWER_AUTH" in environment or options.auth_provider:
        raise UserError(
            "FLOWER_AUTH (--auth) is empty, so FLOWER_AUTH_PROVIDER asks nobody who they are: "
            "set it to the addresses that may log in, or unset both"
        )
    authenticated = bool(options.basic_auth or options.auth)
    _require_closed_api(options, environment, authenticated)
    if not authenticated and options.address and options.address not in _LOOPBACK:
        raise UserError(
            f"Flower on {options.address} needs authentication: set FLOWER_BASIC_AUTH=user:password"
        )


def _require_basic(entries: Sequence[str]) -> None:
    """Refuse what no browser can send, and what Flower reads otherwise than it was meant."""
    if not any(entries):
        raise UserError(f"{_BASIC} is empty: set it to user:password, or unset it")
    for number, entry in enumerate(entries, start=1):
        which = _BASIC if len(entries) == 1 else f"{_BASIC}: entry {number} of {len(entries)}"
        user, colon, password = entry.partition(":")
        if not colon and len(entries) > 1:
            raise UserError(
                f"{which} has no colon. Commas separate users, user:password,user:password, "
                "so a password cannot have one: choose a password without a comma"
            )
        if not colon:
            raise UserError(f"{which} has no colon: write user:password")
        if not user or not password:
            missing = "password" if user else "user"
            raise UserError(f"{which} has no {missing}: write user:password")
        if not entry.isascii() or not entry.isprintable():
            raise UserError(
                f"{which} has a letter that is not plain ASCII, which Flower cannot compare: "
                "choose a password of A-Z, a-z, 0-9 and signs"
            )
        if user != user.strip() or password != password.strip():
            raise UserError(f"{which} begins or ends with a blank: remove it")
        if entry[0] == entry[-1] and entry[0] in "\"'":
            raise UserError(
                f"{which} is in quotation marks, which would be part of it: remove them"
            )


def _require_oauth(options: Any, environment: Mapping[str, str]) -> None:
    """Refuse a login by a provider that cannot work, or that lets everybody in."""
    missing = [
        f"{_PREFIX}{name.upper()}"
        for name in ("auth_provider", *_OAUTH_KEYS)
        if not (getattr(options, name) or environment.get(f"{_PREFIX}{name.upper()}"))
    ]
    if missing:
        raise UserError(
            f"FLOWER_AUTH (--auth) also needs {', '.join(missing)}: nobody could log in"
        )
    try:
        symbol_by_name(options.auth_provider)
    except Exception as error:  # noqa: BLE001 - whatever that module raises
        raise UserError(
            "FLOWER_AUTH_PROVIDER names no class such as flower.views.auth.GoogleAuth2LoginHandler"
            f": {one_line(f'{type(error).__name__}: {error}')}"
        ) from None
    _require_some_addresses(options.auth)


def _require_some_addresses(pattern: str) -> None:
    """Refuse a pattern that admits everybody, or in which Flower finds nobody."""
    for address in pattern.split("|"):
        name, at, domain = address.rpartition("@")
        if ("*" in name and domain.lower() in _OPEN_TO_ALL) or (not at and "*" in address):
            raise UserError(
                "FLOWER_AUTH (--auth) would let everybody in: "
                "name addresses, a@example.org|b@example.org, or a domain of yours, .*@example.org"
            )
        if not (name and domain) or address != address.strip():
            raise UserError(
                "FLOWER_AUTH (--auth) must be addresses, a@example.org|b@example.org, "
                "without blanks, or a domain, .*@example.org"
            )
    if not validate_auth_option(pattern) or pattern.replace(".*", "", 1).count("*"):
        raise UserError("FLOWER_AUTH (--auth) may have one `.*`, before the @, and none beside `|`")


def _require_closed_api(options: Any, environment: Mapping[str, str], authenticated: bool) -> None:
    """Refuse an API that is open to more than this machine; it can stop workers."""
    value = environment.get(_API) or "false"
    try:
        is_open = strtobool(value)
    except ValueError:
        raise UserError(f"{_API} must be true or false") from None
    if is_open and authenticated:
        raise UserError(f"{_API} does nothing beside an authentication: unset it")
    if is_open and options.address and options.address not in _LOOPBACK:
        raise UserError(
            f"{_API} on {options.address} would let everybody stop workers and tasks: "
            "set FLOWER_BASIC_AUTH=user:password instead"
        )


def _require_known_names(
    options: Any, environment: Mapping[str, str], arguments: Sequence[str]
) -> None:
    """Refuse a mistyped name of the doors' settings, and log others."""
    known = _known(options) | _NO_OPTIONS
    named = {name: name[len(_PREFIX) :].lower() for name in environment if name.startswith(_PREFIX)}
    named |= {
        name: name.lstrip("-").replace("-", "_").lower()
        for name in (argument.partition("=")[0] for argument in arguments)
        if name.startswith("--")
    }
    for written, name in named.items():
        if name in known or name.startswith(_OF_KUBERNETES):
            continue
        meant = _meant(name, known)
        if meant is None:
            log.warning("%s is no setting of Flower, and does nothing", written)
            continue
        like = f"--{meant}" if written.startswith("--") else f"{_PREFIX}{meant.upper()}"
        if meant in _OF_DOORS:
            raise UserError(f"{written} is no setting of Flower. Did you mean {like}?")
        log.warning("%s is no setting of Flower, and does nothing: %s is one", written, like)


def _require_known_assigned(options: Any, names: Sequence[str]) -> None:
    """Refuse a mistyped name of the doors' settings in a file."""
    known = _known(options)
    for name in names:
        is_right = name in known or name.startswith("_")
        meant = None if is_right else _meant(name.lower(), known)
        if meant in _OF_DOORS:
            raise UserError(
                f"{name} in the flowerconfig.py is no setting of Flower. Did you mean {meant}? "
                "Let a name of your own begin with an underscore"
            )


def _known(options: Any) -> set[str]:
    return {name.replace("-", "_") for name in options.as_dict()}


def _meant(name: str, known: set[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.75)), None)
