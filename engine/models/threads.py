"""How many threads this process uses: one place, since every library has a switch of its own.

It decides nothing; whoever starts a worker says how many processors the worker has. Results do not depend on it.
"""

from __future__ import annotations

import importlib.util
import os


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
