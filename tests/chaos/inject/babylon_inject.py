"""Harm at a chosen call, in the process that makes it; `tests/chaos/injection.py` asks for it.

A module is changed right after it was imported, so nothing is imported early or for its own sake.
Code that took the function earlier, at its definition (a decorator's registry), keeps the old one:
name a plain function or a method. A call «after» counts when it returns, a coroutine when it ends;
a generator or a context manager returns before its body runs.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def install(text: str) -> None:
    """Prepare the harm that the JSON text asks for, if it is meant for this process."""
    command = " ".join(sys.orig_argv)
    harms = [Harm(**wish) for wish in json.loads(text) if wish.pop("in", "") in command]
    if not harms:
        return
    for harm in harms:
        for name, module in list(sys.modules.items()):
            harm.wrap(name, module)
    sys.meta_path.insert(0, _Watcher(harms))


class Harm:
    """One kind of harm at one function or method, named by its path from the module."""

    def __init__(
        self,
        call: str,
        do: str,
        at: str = "before",
        seconds: float = 0.0,
        once: str | None = None,
        text: str | None = None,
        error: str = "builtins.RuntimeError",
        arguments: Sequence[Any] = ("injected",),
    ) -> None:
        self.call = call
        self._do = do
        self._at = at
        self._seconds = seconds
        self._once = once
        self._text = text
        self._error = error
        self._arguments = arguments
        self._wrapped = False

    def may_be_in(self, module_name: str) -> bool:
        """Tell whether the call's path leads through this module."""
        return self.call.startswith(f"{module_name}.")

    def wrap(self, module_name: str, module: ModuleType) -> None:
        """Wrap the function if it is in this module; a package on its path may not have it."""
        if self._wrapped or not self.may_be_in(module_name):
            return
        *path, name = self.call.removeprefix(f"{module_name}.").split(".")
        owner: Any = module
        for part in path:
            owner = getattr(owner, part, None)
        found = inspect.getattr_static(owner, name, None)
        if isinstance(found, staticmethod | classmethod):
            setattr(owner, name, type(found)(self._around(found.__func__)))
        elif callable(found):
            setattr(owner, name, self._around(found))
        else:
            return
        self._wrapped = True

    def _around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            if self._at == "before":
                self._strike(args, kwargs)
            result = function(*args, **kwargs)
            if self._at == "after":
                self._strike(args, kwargs)
            return result

        @functools.wraps(function)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            if self._at == "before":
                self._strike(args, kwargs)
            result = await function(*args, **kwargs)
            if self._at == "after":
                self._strike(args, kwargs)
            return result

        return awaited if inspect.iscoroutinefunction(function) else called

    def _strike(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._text is not None and self._text not in repr((args, kwargs)):
            return
        if self._once is not None and not _first(self._once):
            return
        if self._do == "sleep":
            time.sleep(self._seconds)  # not told: it is done at every call of a soak
            return
        os.write(2, f"injected: {self._do} {self._at} {self.call}, pid {os.getpid()}\n".encode())
        if self._do == "kill_parent":
            os.kill(os.getppid(), signal.SIGKILL)
        if self._do in ("kill", "kill_parent"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._do == "exit":
            os._exit(1)
        if self._do == "raise":
            module, _, name = self._error.rpartition(".")
            raise getattr(importlib.import_module(module), name)(*self._arguments)
        while self._do == "hang":
            time.sleep(60)


class _Watcher:
    """A finder that finds no module itself; it changes modules of other finders after they ran."""

    def __init__(self, harms: Sequence[Harm]) -> None:
        self._harms = harms

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return another finder's spec, for a module on a call's path."""
        wanted = [harm for harm in self._harms if harm.may_be_in(name)]
        if not wanted:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_wrap(module: ModuleType) -> None:
                execute(module)
                for harm in wanted:
                    harm.wrap(name, module)

            spec.loader.exec_module = execute_and_wrap  # type: ignore[method-assign]
        return spec


def _first(file: str) -> bool:
    try:
        os.close(os.open(file, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
