"""Redis as Celery's transport, but with a prefix before every key, and with its messages screened.

The prefix comes from the database's own id (`store/identity.py`): whoever else uses this Redis, a
deployment takes its own messages only.

Celery trusts what it takes from Redis: bytes that are no JSON, or a header of another type, end the
worker. A worker that ends gives its unfinished message back, so the next one takes it and ends too.
So what cannot be one of our messages is dropped where it arrives. Ours are doorbells: a dropped one
costs at most a sweep.
"""

from __future__ import annotations

import base64
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from kombu.transport import redis
from redis.exceptions import ConnectionError as RedisConnectionError

from babylon_tasks.errors import UserError
from babylon_tasks.settings import QUEUES, load_settings
from babylon_tasks.store.identity import key_prefix
from babylon_tasks.text import one_line

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 262_144  # ours have a few hundred; they carry ids only

Nothing = Annotated[list[None], msgspec.Meta(max_length=0)] | None
Text = Annotated[str, msgspec.Meta(max_length=1024)]
Line = Annotated[str, msgspec.Meta(max_length=1024, pattern=r"^[^\x00-\x1f\x7f]*$")]
Seconds = Annotated[float, msgspec.Meta(ge=1)]
Argument = str | int | float | bool | list[str] | None


class _Embedded(msgspec.Struct):
    """What Celery would send or call after the task; we use none of it, so it must be empty."""

    callbacks: Nothing = None
    errbacks: Nothing = None
    chain: Nothing = None
    chord: None = None


class _Headers(msgspec.Struct, omit_defaults=True):
    """Celery's headers of protocol 2. Others are left out, since the pool would pickle them."""

    task: Line
    id: Line
    lang: Line | None = None
    root_id: Line | None = None
    parent_id: Line | None = None
    shadow: Line | None = None
    eta: None = None  # it would wait in a worker's memory; our waits are columns
    expires: Line | None = None
    group: Line | None = None
    retries: int | None = None
    timelimit: list[Seconds | None] | None = None
    argsrepr: Text | None = None
    kwargsrepr: Text | None = None
    origin: Line | None = None
    ignore_result: bool | None = None


class _DeliveryInfo(msgspec.Struct):
    exchange: Line
    routing_key: Line


class _Properties(msgspec.Struct, omit_defaults=True):
    delivery_tag: Line
    delivery_info: _DeliveryInfo
    body_encoding: Literal["base64"]
    correlation_id: Line | None = None
    reply_to: Line | None = None
    delivery_mode: int | None = None
    expiration: Line | None = None
    priority: int | None = None


class _Message(msgspec.Struct, rename="kebab", omit_defaults=True):
    """A message as kombu stores it in Redis."""

    body: str
    content_type: Literal["application/json"]
    content_encoding: Literal["utf-8"]
    headers: _Headers
    properties: _Properties


_message = msgspec.json.Decoder(_Message)
_body = msgspec.json.Decoder(tuple[list[Argument], dict[str, Argument], _Embedded])


class Unreadable(Exception):
    """Not a message of ours; the text says why."""


def screened(data: bytes) -> bytes:
    """Return the message with only the parts that Celery knows, each of the type it expects.

    Raises:
        Unreadable: These bytes are no message of ours.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise Unreadable(f"{len(data)} bytes")
    try:
        message = _message.decode(data)
        _body.decode(base64.b64decode(message.body, validate=True))
    except (ValueError, RecursionError) as error:
        raise Unreadable(one_line(str(error), 200)) from None
    return msgspec.json.encode(message)


def _screen(
    prefix: bytes, response: Sequence[bytes] | None, **_: Any
) -> tuple[bytes, bytes] | None:
    """Screen BRPOP's answer, (list, message) or None; None too where the message is dropped."""
    if not response:
        return None
    queue, data = response
    name = queue.removeprefix(prefix).partition(redis.Channel.sep.encode())[0].decode()
    if name not in QUEUES:
        return queue, data  # an answer to a command, or another program's
    try:
        return queue, screened(data)
    except Unreadable as error:
        log.warning("dropped a message on queue %s that is none of ours: %s", name, error)
        return None


class Channel(redis.Channel):  # type: ignore[misc]
    """A channel to this database's deployment alone, whose client screens what it pops.

    `receivers` counts who received what was published since it was set to 0.
    """

    receivers = 0

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        if "global_keyprefix" not in connection.client.transport_options:
            self.global_keyprefix = _key_prefix()
        super().__init__(connection, **kwargs)

    def _create_client(self, asynchronous: bool = False) -> Any:
        client = super()._create_client(asynchronous)
        screen = functools.partial(_screen, self.global_keyprefix.encode())
        client.set_response_callback("BRPOP", screen)
        client.set_response_callback("PUBLISH", self._count)
        return client

    def _count(self, receivers: int, **_: Any) -> int:
        self.receivers += receivers
        return receivers


def publish_event(dispatcher: Any, event: str, fields: Mapping[str, Any]) -> bool:
    """Publish an event by Celery's dispatcher; return whether anybody received it.

    Redis keeps none: what is published while no Flower is connected is gone.
    """
    producer = dispatcher.producer
    if producer is None:  # the worker takes leave
        return False
    producer.channel.receivers = 0
    dispatcher.publish(event, fields, producer)
    return bool(producer.channel.receivers)


def _key_prefix() -> str:
    """Return the prefix; where it cannot be read, Celery tries again as if Redis were away."""
    try:
        return key_prefix(load_settings().postgres())
    except UserError as error:
        raise RedisConnectionError(str(error)) from error


class Transport(redis.Transport):  # type: ignore[misc]
    """Our app's transport, in the place of kombu's; see `babylon_tasks.celery`."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str) -> None:
        """Hand a message to its consumer; one on the control channel may still be nonsense."""
        try:
            super()._deliver(message, queue)
        except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
            log.warning("dropped a message on %s that cannot be read: %r", queue, error)


class TlsTransport(Transport):
    """The same; Celery's logs and Flower know it by another name, `rediss`."""
