"""Which token comes next: the likeliest, or one drawn by the prompt's own generator."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class Chooser:
    """The temperatures and generators of the rows of a batch. Each row's choice depends on that row alone."""

    def __init__(self, torch: Any, device: Any, temperatures: Sequence[float], seeds: Sequence[int]) -> None:
        self._torch = torch
        self._device = device
        self._temperatures = list(temperatures)
        self._dice = [random.Random(seed) for seed in seeds]
        self._prepare()

    def keep(self, rows: Sequence[int]) -> None:
        """From now on these rows, in this order."""
        self._temperatures = [self._temperatures[row] for row in rows]
        self._dice = [self._dice[row] for row in rows]
        self._prepare()

    def _prepare(self) -> None:
        """Rows at temperature 0 need no dice; their division is by 1."""
        torch, made = self._torch, self._temperatures
        self._any_drawn = any(made)
        if self._any_drawn:
            column = torch.tensor(made, dtype=torch.float64, device=self._device).unsqueeze(1)
            self._greedy = column.squeeze(1) == 0
            self._divisor = column.masked_fill(column == 0, 1.0)

    def choose(self, logits: Tensor) -> Tensor:
        """The next token of each row [rows] for its logits [rows, vocabulary].

        Drawn ones: the first whose cumulative share of softmax(logits / temperature) is above the row's next random
        number. In float64, so that neighbours, whose presence changes how sums are rounded, practically never count.
        """
        torch = self._torch
        likeliest: Tensor = logits.argmax(-1)
        if not self._any_drawn:
            return likeliest
        wide = logits.double()
        below = wide - wide.amax(-1, keepdim=True)  # or a tiny temperature would make infinities of all of them
        shares = torch.softmax(below / self._divisor, -1).cumsum(-1)
        thrown = [dice.random() if made else 0.0 for dice, made in zip(self._dice, self._temperatures, strict=True)]
        heights = torch.tensor(thrown, dtype=torch.float64, device=self._device).unsqueeze(1) * shares[:, -1:]
        drawn = torch.searchsorted(shares, heights, right=True).squeeze(1).clamp_max_(logits.shape[1] - 1)
        chosen: Tensor = torch.where(self._greedy, likeliest, drawn)
        return chosen
