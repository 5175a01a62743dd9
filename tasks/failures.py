"""How many samples may fail before a step stops."""

import logging
from collections import Counter

from tasks.reasons import generalise

logger = logging.getLogger(__name__)


class TooManyFailuresError(RuntimeError):
    """More samples failed than the configuration allows."""


def check_failures(*, failed: list[str], total: int, failed_share_max: float, what: str) -> None:
    """Stop when more than the allowed share failed; say how many failed and why otherwise.

    The same fault of many files is one reason.

    Raises:
        TooManyFailuresError: counts and the most frequent reasons.
    """
    if not failed:
        return
    reasons = "; ".join(f"{count} × {reason}" for reason, count in Counter(map(generalise, failed)).most_common(3))
    message = f"{len(failed)} of {total} {what} failed ({reasons})"
    if len(failed) > failed_share_max * total:
        raise TooManyFailuresError(f"{message}; more than failed_share_max = {failed_share_max:.0%}. Mend the source or raise it")
    logger.warning(message)
