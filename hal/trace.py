"""``HAL_TRACE``: what hal does with plugins and workers, as lines on stderr."""

from __future__ import annotations

import logging
import os
import sys

_HANDLER_NAME = "hal-trace"


def enable_from_environment() -> bool:
    """Show hal's log on stderr when ``HAL_TRACE`` is set to anything but empty or 0.

    Returns:
        Whether tracing is on.
    """
    if os.environ.get("HAL_TRACE", "0") in ("", "0"):
        return False
    logger = logging.getLogger("hal")
    if not any(handler.get_name() == _HANDLER_NAME for handler in logger.handlers):
        handler = logging.StreamHandler(sys.stderr)
        handler.set_name(_HANDLER_NAME)
        handler.setFormatter(logging.Formatter("hal[%(process)d] %(relativeCreated)6.0f ms %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    return True
