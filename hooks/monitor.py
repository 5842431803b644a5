"""What hooks that follow a metric say when nobody publishes it."""

import difflib
import logging
from collections.abc import Iterable, Sequence

logger = logging.getLogger(__name__)


def warn_of_missing(who: str, monitors: Sequence[str], metrics: Iterable[str]) -> None:
    """Say that none of the monitored metrics is among those that an evaluation published, and which are."""
    published = sorted(metrics)
    close = difflib.get_close_matches(monitors[0], published, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    logger.warning("%s: no evaluation publishes %s, so it decides nothing.%s Published: %s", who, " or ".join(monitors), hint,
                   ", ".join(published) or "nothing")


def direction(metric: str) -> int:
    """Return -1 for a metric of which less is better, any whose name starts with "loss" (val/loss, val/ema_loss_ce), else 1."""
    return -1 if metric.rpartition("/")[2].removeprefix("ema_").startswith("loss") else 1
