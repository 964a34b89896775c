"""How a job of many independent pieces runs: here, in processes of this machine, or as Ray actors on many.

A piece's result depends on the piece alone, so every engine gives the same results, in the pieces' order.
"""

from __future__ import annotations

import collections
import concurrent.futures
import concurrent.futures.process
import contextlib
import functools
import itertools
import logging
import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Protocol, TypeVar

from spatialllm_jax.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
NAMES = ("local", "ray")
# Pieces under way at a time in local processes: enough for every worker, few enough to stay in memory.
_AHEAD = 24
# Most pieces in a block of Ray Data, whose results come together: a kill loses little, and results come steadily.
_BLOCK = 64


class Engine(Protocol):
    """Runs `make()(item)` for many items."""

    def map(self, make: Callable[[], Callable[[Item], Result]], items: Iterable[Item]) -> Generator[Result, None, None]:
        """The results, in the items' order. Close it to end early.

        Args:
            make: builds the function, once per worker; it and the items must be picklable.
            items: read as they are needed.

        Raises:
            UserError: what the function raised, or a worker's sudden end.
        """
        ...


class Local:
    """This process, or `workers` processes of this machine."""

    def __init__(self, workers: int = 1) -> None:
        self._workers = workers

    def map(self, make: Callable[[], Callable[[Item], Result]], items: Iterable[Item]) -> Generator[Result, None, None]:
        """See `Engine`."""
        if self._workers <= 1:
            yield from map(make(), items)
            return
        # Spawned, not forked: an OpenGL context does not survive a fork.
        with contextlib.closing(_in_processes(make, iter(items), self._workers)) as results:
            yield from results


def _in_processes(make: Callable[[], Callable[[Item], Result]], items: Iterator[Item], workers: int
                  ) -> Generator[Result, None, None]:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, initializer=_start_worker,
                                                initargs=(os.getpid(), make)) as pool:
        pending: collections.deque[concurrent.futures.Future[Any]] = collections.deque()
        try:
            while True:
                pending.extend(pool.submit(_work, item) for item in itertools.islice(items, _AHEAD - len(pending)))
                if not pending:
                    return
                yield pending.popleft().result()
        except concurrent.futures.process.BrokenProcessPool:
            raise UserError("a worker process ended unexpectedly (out of memory?); use fewer --workers") from None
        finally:
            for future in pending:
                future.cancel()


_function: Callable[[Any], Any] | None = None


def _start_worker(parent: int, make: Callable[[], Callable[[Any], Any]]) -> None:
    """Builds the function, and ends the worker when its parent was killed, so that no process is left behind."""
    global _function

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        _function = make()
    except UserError as error:      # told by the first item: an initializer that raises breaks the pool
        _function = functools.partial(_fail, error)


def _fail(error: UserError, item: Any) -> Any:
    raise error


def _work(item: Any) -> Any:
    assert _function is not None
    return _function(item)


class Ray:
    """Ray Data: one actor per accelerator of the cluster, or `workers` actors where there is none."""

    def __init__(self, workers: int = 1, address: str = "") -> None:
        """Connects to the cluster at `address` ("auto": the one this machine belongs to), or starts one here.

        Raises:
            UserError: when Ray is not installed, or no cluster answers.
        """
        try:
            import ray
            import ray.data
        except ImportError:
            raise UserError('--engine ray needs the package ray, which is not installed; run: pip install '
                            '"spatialllm-jax[ray]"') from None
        if not ray.is_initialized():
            try:
                ray.init(address=address or None, include_dashboard=False, log_to_driver=False,
                         logging_level="error", **({} if address else {"num_cpus": max(workers + 1, 2)}))
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise UserError(f"no Ray cluster at {address!r} ({str(error).splitlines()[0]}); start one with `ray "
                                "start --head`, or leave --ray-address out") from error
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        self._ray = ray
        self._accelerators = int(ray.cluster_resources().get("GPU", 0))
        self._workers = self._accelerators or workers
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True

    def map(self, make: Callable[[], Callable[[Item], Result]], items: Iterable[Item]) -> Generator[Result, None, None]:
        """See `Engine`."""
        import pyarrow

        # In Arrow, since a million names as Python objects are not small.
        column = pyarrow.array((pickle.dumps(item) for item in items), pyarrow.large_binary())
        if not len(column):
            return
        size = max(1, min(_BLOCK, len(column) // (16 * self._workers)))
        table = pyarrow.table({"item": column})
        pool = self._ray.data.ActorPoolStrategy(size=min(self._workers, len(column)))
        dataset = self._ray.data.from_arrow([table.slice(k, size) for k in range(0, len(column), size)]).map_batches(
            _Actor, fn_constructor_kwargs={"make": pickle.dumps(make)}, batch_size=1, batch_format="pyarrow",
            compute=pool, num_gpus=1 if self._accelerators else 0)
        try:
            for row in dataset.iter_rows():
                result = pickle.loads(row["result"])
                if isinstance(result, UserError):
                    raise result
                yield result
        except self._ray.exceptions.RayError as error:
            raise UserError(f"a Ray worker ended ({str(error).strip().splitlines()[-1]}); run the same command again, "
                            "with fewer --workers if memory ran out") from error


class _Actor:
    """One worker of Ray Data: builds the function once, applies it to a batch of one."""

    def __init__(self, make: bytes) -> None:
        self._error: UserError | None = None
        try:
            self._function = pickle.loads(make)()
        except UserError as error:      # a missing model is one sentence, not a cluster that restarts actors
            self._error = error

    def __call__(self, batch: Any) -> Any:
        import pyarrow

        results = [pickle.dumps(self._result(item.as_py())) for item in batch["item"]]
        return pyarrow.table({"result": pyarrow.array(results, pyarrow.large_binary())})

    def _result(self, item: bytes) -> Any:
        if self._error is not None:
            return self._error
        try:
            return self._function(pickle.loads(item))
        except UserError as error:
            return error


def engine_of(name: str, workers: int, address: str = "") -> Engine:
    """The engine that `--engine` names.

    Raises:
        UserError: for an unknown name, an address without Ray, or a missing extra.
    """
    if name not in NAMES:
        raise UserError(f"--engine {name!r} is unknown; choose from {', '.join(NAMES)}")
    if address and name != "ray":
        raise UserError(f"--ray-address {address} is of use with --engine ray alone; add that, or leave it out")
    return Ray(workers, address) if name == "ray" else Local(workers)
