"""The order of a run's images: EDM's endless shuffle in a sliding window, resumable."""

from __future__ import annotations

from typing import Any, cast

import numpy as np


class InfiniteOrder:
    """Endless dataset indices of one rank.

    Starts from a full shuffle. Each position, once read, is swapped with one of the `window` positions before it, so
    that an image returns after about an epoch, at another place. All ranks share one order; rank r of `world` reads
    the indices r, r + world, ...

    Source: `InfiniteSampler` of EDM, reproduced draw by draw.
    """

    def __init__(self, *, size: int, seed: int, world: int = 1, rank: int = 0, window: float = 0.5) -> None:
        """Shuffle.

        Args:
            size: Images in the dataset.
            seed: In [0, 2^32), the same on all ranks.
            world: Number of processes.
            rank: Index of this process.
            window: Length of the window as a share of `size`, in [0, 1].

        Raises:
            ValueError: A number is out of its range.
        """
        if size < 1:
            raise ValueError(f"a dataset must hold at least one image, found {size}")
        if not 0 <= rank < world:
            raise ValueError(f"rank must be in [0, world), found rank {rank} of world {world}")
        if not 0 <= window <= 1:
            raise ValueError(f"window is a share of the dataset, in [0, 1], found {window}")
        self._world, self._rank = world, rank
        self._window = int(np.rint(size * window))
        self._random = np.random.RandomState(seed)
        self._order = np.arange(size, dtype=np.int64)
        self._random.shuffle(self._order)
        self._position = 0

    def take(self, count: int) -> np.ndarray:
        """Return the next `count` indices of this rank, int64 [count]; all ranks must take as many."""
        size, start = len(self._order), self._position
        steps = count * self._world
        # The distance of each position's partner: the same numbers as single draws. The reference draws none for a
        # window of less than two.
        back = self._random.randint(self._window, size=steps).tolist() if self._window >= 2 else [0] * steps
        read = np.empty(steps, dtype=np.int64)
        order: Any = memoryview(self._order)  # type: ignore[arg-type]  # a third faster to index one by one than the array
        for n in range(steps):
            here = (start + n) % size
            there = (here - back[n]) % size
            read[n] = order[here]
            order[here], order[there] = order[there], order[here]
        self._position += steps
        return read[(self._rank - start) % self._world :: self._world]

    def state(self) -> dict[str, Any]:
        """Return the complete state, arrays and integers, each a copy."""
        _, key, position, *_ = cast(tuple[Any, ...], self._random.get_state())
        return {
            "order": self._order.copy(),
            "position": self._position,
            "random_key": key.copy(),
            "random_position": int(position),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from the position at which `state()` was taken; a dataset of another size is a ValueError."""
        order = np.array(state["order"], dtype=np.int64)
        if len(order) != len(self._order):
            raise ValueError(
                f"the saved order has {len(order)} images, the dataset {len(self._order)}; "
                "resume with the dataset that the run was started with, or start a new run"
            )
        self._order = order
        self._position = int(state["position"])
        key = np.asarray(state["random_key"], dtype=np.uint32)
        self._random.set_state(("MT19937", key, int(state["random_position"]), 0, 0.0))
