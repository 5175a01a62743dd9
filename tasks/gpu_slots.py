"""Runs of one Prefect server take turns at its machines' GPUs: a training holds a slot of a global concurrency limit."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from prefect.concurrency.sync import concurrency
from prefect.context import TaskRunContext
from prefect.runtime import deployment

from tasks.execution import ExecutionConfig

LIMIT = "gpu"


@contextmanager
def hold_gpu_slot(execution: ExecutionConfig | None) -> Iterator[None]:
    """Wait for a slot and hold it, where what is done in here goes to a GPU; nothing on a CPU or outside a task run.

    A deployment's run insists on the limit, which `normascope serve` makes; a command's run takes a slot where there is a limit.

    Args:
        execution: where it is done; None for this process.

    Raises:
        prefect.concurrency.asyncio.ConcurrencySlotAcquisitionError: a deployment's run on a server without the limit.
    """
    if TaskRunContext.get() is None or not goes_to_gpu(execution):
        yield
        return
    # a training of hours does not end because the server was away when the slot was to be renewed
    with concurrency(LIMIT, strict=deployment.id is not None, raise_on_lease_renewal_failure=False):
        yield


def goes_to_gpu(execution: ExecutionConfig | None) -> bool:
    """Whether this machine has GPUs, or, of a cluster at an address, whether its workers must offer one."""
    if execution is not None and execution.kind == "address":
        return "GPU" in execution.resources
    return torch.cuda.is_available()
