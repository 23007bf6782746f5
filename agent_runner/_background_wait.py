"""Decide whether a run still waits, after its last turn, for background tasks and for a turn that the CLI begins."""

from __future__ import annotations

from ._control import Control
from ._events import Events
from ._timer import WhileTimer
from ._translate import Translator
from .contract.protocol import LogData

WAKE_SECONDS = 10.0
"""Seconds in which the CLI must begin its turn after the end of a background task; it takes a tenth of a second."""


class BackgroundWait:
    """Limits the time for which a run waits for background tasks, and for the CLI's own turns."""

    def __init__(self, seconds: float, events: Events, translator: Translator, control: Control) -> None:
        """Begin; the tasks have ``seconds`` after the last turn."""
        self.is_over = False
        """True when the tasks have had their time."""
        self._seconds = seconds
        self._events = events
        self._translator = translator
        self._control = control
        self._timer = WhileTimer(seconds, self._end)
        self._own_turn_timer = WhileTimer(WAKE_SECONDS, self._expect_no_own_turn)

    def update(self) -> None:
        """Note the run's state. As prompts and the end wait for the CLI's own turn, it is not expected for ever."""
        self._timer.update(self._only_background_left)
        turns = self._translator.turns
        self._own_turn_timer.update(turns.own_expected and turns.current is None)

    @property
    def nothing_left(self) -> bool:
        """Return whether no prompt can follow, and nothing runs that the run still waits for."""
        return self._only_background_left and (self._translator.idle or self.is_over)

    @property
    def _only_background_left(self) -> bool:
        """Return whether no turn runs and no prompt can follow, so that only background tasks can delay the end."""
        control = self._control
        expected = control.more_prompts or control.prompts or control.requests.awaited
        return not expected and self._translator.turns.current is None

    def _end(self) -> None:
        self.is_over = True
        self._control.changed.set()

    def _expect_no_own_turn(self) -> None:
        self._translator.turns.own_expected = False
        self._control.interrupt_early = False
        self._control.changed.set()

    def report_unfinished(self) -> list[str]:
        """Report the background tasks that the end of the run ends; return their descriptions."""
        unfinished = [task.description for task in self._translator.background.running.values()]
        after = f" {self._seconds:g} s after the last turn" if self.is_over else ""
        for description in unfinished:
            text = f"ended unfinished, as it still ran in the background{after}: {description}"
            self._events.emit(LogData(stream="runner", text=text))
        return unfinished
