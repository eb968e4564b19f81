"""Items that kill their workers: tried again a few times, then set apart by name, so that the others get done."""

from __future__ import annotations

import logging
from typing import Any

from pipeline.workers.task import WorkerError

log = logging.getLogger(__name__)

MAX_DEATHS = 3

# so many items whose first worker died, with none done in between: it is not the items
MAX_FAILING_IN_A_ROW = 9

_MAX_NAMED = 5

# an item that was on so many nodes when they were lost may be what they died of
MAX_LOST_NODES = 3


class QuarantineError(WorkerError):
    """Some items killed every worker that tried them; all others are done."""


class Quarantine:
    """Counts the workers that died of each item."""

    def __init__(self) -> None:
        self._deaths: dict[int, int] = {}
        self._set_apart: list[tuple[Any, str]] = []
        self._failing_in_a_row = 0
        self._lost_nodes: dict[int, int] = {}
        self._lost_with_nodes_in_a_row = 0

    def note_finish(self) -> None:
        self._failing_in_a_row = self._lost_with_nodes_in_a_row = 0

    def excuses(self, item: Any, *, at_once: int) -> bool:
        """Whether an item that was lost with its node may be tried again as if nothing had been.

        With a node all that it does is lost, so this is no death of an item's worker, unless it happens to one item
        again and again, or nine times over to as many as there are `at_once`, with none done in between.
        """
        lost_nodes = self._lost_nodes[id(item)] = self._lost_nodes.get(id(item), 0) + 1
        self._lost_with_nodes_in_a_row += 1
        if lost_nodes >= MAX_LOST_NODES or self._lost_with_nodes_in_a_row > MAX_FAILING_IN_A_ROW * at_once:
            return False
        log.warning("%s was lost with the node that did it; it will be tried again", item)
        return True

    def may_try_again(self, item: Any, *, worker: str, how: str) -> bool:
        """Count a death. Raises WorkerError if nothing but deaths comes of this run."""
        deaths = self._deaths[id(item)] = self._deaths.get(id(item), 0) + 1
        died = f"a worker ({worker}) {how} while doing {item}"
        if deaths == 1:
            self._failing_in_a_row += 1
        if self._failing_in_a_row >= MAX_FAILING_IN_A_ROW:
            raise WorkerError(
                f"workers die whatever they do: {died}, as did {MAX_FAILING_IN_A_ROW - 1} before; nothing that was "
                f"done is lost: run the same command to go on, {_WITH_MORE_ROOM}"
            )
        if deaths < MAX_DEATHS:
            log.warning("%s; it will be tried again (%d of %d)", died, deaths + 1, MAX_DEATHS)
            return True
        log.warning("%s; it is set apart, having killed %d workers", died, MAX_DEATHS)
        self._set_apart.append((item, how))
        return False

    def check_empty(self) -> None:
        """To be called when all else is done. Raises QuarantineError, naming the items that were set apart."""
        if not self._set_apart:
            return
        named = "; ".join(f"{item} ({how})" for item, how in self._set_apart[:_MAX_NAMED])
        if (more := len(self._set_apart) - _MAX_NAMED) > 0:
            named += f"; and {more} more"
        raise QuarantineError(
            f"units that killed {MAX_DEATHS} workers each and are not done: {named}. All others are done and kept, the "
            f"dataset is not finished: run the same command to try again, {_WITH_MORE_ROOM}; if that does not help, "
            "look into the input named"
        )


_WITH_MORE_ROOM = "with fewer workers (workers=1) or a higher max_worker_memory_bytes if memory was short"
