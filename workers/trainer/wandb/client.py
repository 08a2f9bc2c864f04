"""Asks W&B's training API through ART's client; every wait gives signs of life."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

import httpx
from art.serverless.client import Client
from openai import NOT_GIVEN, APIConnectionError, APIError, APIStatusError, NotFoundError

from babylon_tasks.errors import BabylonError, Final, RemoteUnavailable, UserError
from babylon_tasks.text import one_line

T = TypeVar("T")

LIFE_SECONDS = 1.0  # between two signs of life
ASK_SECONDS = 60.0  # for an answer to anything but a POST of a job
POST_SECONDS = 900.0  # for the upload of a step and its answer; ART's client gives up after 600
_AWAY = (408, 409, 425, 429)  # W&B has too much to do, or something else to do for this model


class Unsure(Exception):
    """A job was sent, and no answer came: it may exist or not."""


class RemoteModel(NamedTuple):
    """A model at W&B."""

    id: str
    entity: str
    project: str
    name: str


class Event(NamedTuple):
    """One event of a job."""

    id: str
    type: str
    data: dict[str, Any]


class WandbClient:
    """ART's client of one step, `async with open_client(…)`.

    Its errors are ours: `UserError` where the key or a setting is wrong, `RemoteUnavailable` where
    W&B does not answer, `Final` where it refuses what it was sent.
    """

    def __init__(self, client: Client, alive: Callable[[], None]) -> None:
        self._client = client
        self._alive = alive

    async def open_model(
        self, entity: str | None, project: str, name: str, base_model: str
    ) -> RemoteModel:
        """Return the model of this name, made at the first call."""
        what = f"the model {name} in project {project} (WANDB_ENTITY, WANDB_PROJECT, MODEL_NAME)"

        async def ask() -> tuple[RemoteModel, str]:
            made = await self._client.models.create(
                entity=entity,
                project=project,
                name=name,
                base_model=base_model,
                return_existing=True,
            )
            return RemoteModel(made.id, made.entity, made.project, made.name), made.base_model

        try:
            model, made_from = await self._get(ask(), what)
        except _UnknownError as error:
            raise UserError(f"W&B does not know {what} ({error})") from error
        if made_from != base_model:
            raise UserError(
                f"W&B's model {name} was made from {made_from}, BASE_MODEL is {base_model}: "
                "set BASE_MODEL back, or MODEL_NAME to a new name"
            )
        return model

    async def newest_step(self, model_id: str) -> int:
        """Return the step of the newest checkpoint, 0 where there is none, or no such model."""

        async def ask() -> int:
            listed = self._client.models.checkpoints.list(model_id=model_id, order="desc", limit=1)
            async for checkpoint in listed:
                return int(checkpoint.step)
            return 0

        try:
            return await self._get(ask(), "the model's checkpoints")
        except _UnknownError:
            return 0

    async def post_job(self, model_id: str, groups: Sequence[Any], config: dict[str, Any]) -> str:
        """Post one job, once; its id.

        Raises:
            Unsure: Whether the job exists is not known.
            BabylonError: It does not.
        """
        try:
            job = await self._ask(
                self._client.training_jobs.create(
                    model_id=model_id,
                    trajectory_groups=list(groups),
                    experimental_config=config,
                ),
                POST_SECONDS,
            )
        except APIStatusError as error:
            if error.status_code >= 500 or error.status_code == 408:
                raise Unsure(words_of(error)) from error
            raise refusal_of(error, "the training job") from error
        except APIConnectionError as error:
            if isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout):
                raise refusal_of(error, "the training job") from error
            raise Unsure(words_of(error)) from error
        except (APIError, TimeoutError, _NonsenseError) as error:
            raise Unsure(words_of(error)) from error
        job_id = getattr(job, "id", None)
        if not isinstance(job_id, str) or not job_id:
            raise Unsure("its answer has no id")
        return job_id

    async def events(self, job_id: str, after: str | None) -> list[Event] | None:
        """Return the job's events after the one named, or None if W&B knows no such job."""

        async def ask() -> list[Event]:
            listed = self._client.training_jobs.events.list(
                training_job_id=job_id, after=after or NOT_GIVEN
            )
            return [Event(str(e.id), str(e.type), dict(e.data)) async for e in listed]

        try:
            return await self._get(ask(), f"the events of job {job_id}")
        except _UnknownError:
            return None

    async def pause(self, seconds: float) -> None:
        """Wait, with signs of life."""
        await self._living(asyncio.sleep(seconds))

    async def _get(self, question: Coroutine[Any, Any, T], what: str) -> T:
        try:
            return await self._ask(question)
        except NotFoundError as error:
            raise _UnknownError(words_of(error)) from error
        except (APIError, TimeoutError) as error:
            refusal = refusal_of(error, what)
            # Nothing of the step was asked about: its windows are not to blame.
            raise UserError(str(refusal)) if isinstance(refusal, Final) else refusal from error
        except _NonsenseError as error:
            raise RemoteUnavailable(f"W&B's answer about {what} cannot be read") from error

    async def _ask(self, question: Coroutine[Any, Any, T], seconds: float = ASK_SECONDS) -> T:
        async with asyncio.timeout(seconds):
            try:
                return await self._living(question)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                # ART's client does not check the shape of what it is told.
                raise _NonsenseError(one_line(f"{type(error).__name__}: {error}")) from error

    async def _living(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                self._alive()
                await asyncio.wait([task], timeout=LIFE_SECONDS)
            return task.result()
        finally:
            task.cancel()


@asynccontextmanager
async def open_client(key: str, url: str, alive: Callable[[], None]) -> AsyncIterator[WandbClient]:
    """Yield a client for one event loop."""
    client = Client(api_key=key, base_url=url)
    try:
        yield WandbClient(client, alive)
    finally:
        await client.close()


class _UnknownError(Exception):
    """W&B does not know what it was asked about."""


class _NonsenseError(Exception):
    """An answer that is not what it should be."""


def refusal_of(error: Exception, what: str) -> BabylonError:
    """Say what an error of the client means for the step."""
    if not isinstance(error, APIStatusError):
        return RemoteUnavailable(f"W&B does not answer about {what}: {words_of(error)}")
    status = error.status_code
    if status in (401, 403):
        return UserError(
            f"W&B refuses WANDB_API_KEY ({words_of(error)}): is it right, and allowed?"
        )
    if status == 402:
        return UserError(f"W&B asks for payment ({words_of(error)})")
    if status >= 500 or status in _AWAY:
        return RemoteUnavailable(f"W&B cannot be asked about {what} now ({words_of(error)})")
    return Final(f"W&B refuses {what} ({words_of(error)})")


def words_of(error: Exception) -> str:
    """W&B's own message; never the request, whose headers have the key."""
    if isinstance(error, APIStatusError):
        return one_line(f"{error.status_code}: {error.message}", 300)
    if isinstance(error, TimeoutError):
        return "no answer in time"
    cause = error.__cause__ or error
    return one_line(f"{type(cause).__name__}: {cause}", 300)
