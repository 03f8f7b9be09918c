"""Work for the executors of ``concurrent.futures`` and their like."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from typing import Any


def submitted(executor: Executor, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """The future of a call; one that has failed where the workers died before it was given to them.

    Whether a worker that dies is heard of by ``submit`` or by ``result`` is chance: here it is always the latter.
    """
    try:
        return executor.submit(function, *arguments)
    except BrokenExecutor as error:
        future: Future[Any] = Future()
        future.set_exception(error)
        return future
