"""The key that the model server asks for, as OpenAI's clients send it."""

from __future__ import annotations

import hmac
import ipaddress

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from babylon_tasks.errors import UserError

_OPEN = ("/healthz",)  # a health check has no key, and learns only that the server runs


class KeyRequired:
    """Lets a request pass to `app` only with `Authorization: Bearer {key}`."""

    def __init__(self, app: ASGIApp, key: SecretStr) -> None:
        self._app = app
        self._key = key.get_secret_value().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401."""
        if (
            scope["type"] != "http"
            or scope["path"] in _OPEN
            or self._may_pass(Headers(scope=scope))
        ):
            await self._app(scope, receive, send)
        else:
            await _refusal()(scope, receive, send)

    def _may_pass(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        # Headers arrive as latin-1. The comparison takes constant time: an early return would
        # tell how much of the key was right.
        given = key.strip().encode("latin-1")
        return scheme.lower() == "bearer" and hmac.compare_digest(given, self._key)


def require_key(host: str, key: SecretStr | None) -> None:
    """Refuse to listen without a key on an address that others can reach.

    Raises:
        UserError: The address is not loopback, and there is no key.
    """
    if key is None and not _is_loopback(host):
        raise UserError(
            f"a model server on {host or 'every address'} needs a key: "
            "set SERVE_API_KEY (openssl rand -hex 24), or listen on 127.0.0.1"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _refusal() -> JSONResponse:
    error = {
        "message": "a key is needed: Authorization: Bearer (SERVE_API_KEY of this server)",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_api_key",
    }
    return JSONResponse({"error": error}, 401, {"www-authenticate": "Bearer"})
