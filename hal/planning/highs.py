"""HiGHS without a word on the terminal, where results are printed."""

from __future__ import annotations

import highspy


class Highs(highspy.Highs):  # type: ignore[misc]  # highspy has no types
    """HiGHS that is silent from the beginning: it prints its banner when its callbacks are set up."""

    def enableCallbacks(self) -> None:  # noqa: N802 (HiGHS calls it by this name)
        """Called by the constructor."""
        self.setOptionValue("output_flag", False)
        super().enableCallbacks()
