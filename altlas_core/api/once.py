"""Idempotency-Key: a POST that is repeated gets the first answer, and nothing is started twice."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence

from altlas_core.api.engine import Engine
from altlas_core.api.errors import ApiError
from altlas_core.api.journal import Idempotent
from altlas_core.api.records import Prediction


class Once:
    """Keys are remembered in the journal, in the same commit as the tasks they began."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._under_way: dict[str, asyncio.Future[None]] = {}

    async def answer(
        self, key: str, path: str, body: bytes, predictions: Sequence[Prediction], told: Callable[[], str]
    ) -> str:
        """The answer to this request: that of the first with this key, else `told()` once the predictions are accepted.

        Raises ApiError where the key was used for another request, or nothing could be accepted (the key is free then).
        """
        fingerprint = hashlib.sha256(path.encode() + b"\0" + body).hexdigest()
        while key in self._under_way:
            await asyncio.shield(self._under_way[key])
        before = self._engine.parts.journal.idempotent(key)
        if before is not None:
            if before.fingerprint != fingerprint:
                text = "Idempotency-Key: it was used for another request; take a new key for a new request"
                raise ApiError("idempotency_key_reused", text)
            return before.answer
        under_way = self._under_way[key] = asyncio.get_running_loop().create_future()
        try:
            await self._engine.accept(predictions, lambda: Idempotent(key, fingerprint, told(), time.time()))
        finally:
            del self._under_way[key]
            under_way.set_result(None)
        return told()
