"""What Dask has each process of the local cluster do first (`preload`)."""

import atexit
import os
from typing import Any


def dask_setup(_worker: Any) -> None:
    """End at once where the interpreter would end: taking torch apart costs seconds of the processor, and results are with the client."""
    atexit.register(os._exit, 0)
