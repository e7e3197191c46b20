"""Seconds by phase, without making the host wait for a GPU."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


class Clock:
    """Adds up the seconds of named phases; on CUDA by events in the stream, which are read only at the end."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the block under `phase`."""
        if self._cuda:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            first.record()
            yield
            last.record()
            self._events.append((phase, first, last))
        else:
            start = time.perf_counter()
            yield
            self._add(phase, time.perf_counter() - start)

    def loading(self, batches: Iterable[T]) -> Iterator[T]:
        """Pass batches through, counting the wait for each under `loading`."""
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                self._add("loading", time.perf_counter() - start)
            yield batch

    def seconds(self) -> dict[str, float]:
        """Seconds by phase so far."""
        if self._events:
            torch.cuda.synchronize()
            for phase, first, last in self._events:
                self._add(phase, first.elapsed_time(last) / 1000)
            self._events.clear()
        return dict(self._seconds)

    def _add(self, phase: str, seconds: float) -> None:
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds
