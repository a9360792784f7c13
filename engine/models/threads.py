"""How many threads this process uses, how a model uses them, and an event loop in one of them.

It decides no numbers; whoever starts a worker says how many processors the worker has. Results do not depend on it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def set_threads(n: int) -> None:
    """Limits torch, FAISS and the tokenizers to `n` threads each; a library that is not installed is skipped.

    Call it before the first text is tokenised: the tokenizers read their limit once per process. Takes seconds the
    first time, when it imports torch.

    Raises:
        ValueError: `n` is below 1.
    """
    if n < 1:
        raise ValueError(f"a process needs at least 1 thread, not {n}")
    os.environ["RAYON_NUM_THREADS"] = str(n)
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(n)
    if importlib.util.find_spec("faiss"):
        import faiss

        faiss.omp_set_num_threads(n)


def map_batches_on_cpu(function: Callable[[T], R], batches: Iterable[T]) -> Iterator[R]:
    """Computes every batch in a single thread, as many batches at a time as torch has threads.

    Small layers gain little from several threads and wait for the slowest one after each operation, which costs a
    factor of ten as soon as another process wants a core; whole batches wait for nothing.

    Args:
        function: runs torch; its mode (`torch.inference_mode`) must be set inside, since torch keeps it per thread.
        batches: taken in order.

    Yields:
        The results in the order of the batches.
    """
    import torch

    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(function, batches)
    finally:
        torch.set_num_threads(threads)  # a part of torch's setting is shared by all threads


class LoopThread:
    """An event loop in a thread; coroutines run on it from any other thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="calls", daemon=True)
        self.thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()
