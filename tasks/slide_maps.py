"""An archive's slides, the threshold of their regions, and the task that maps one slide; the work is in `tasks.write_slide_map`."""

from typing import Any

import numpy as np
from prefect import task
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task, exponential_backoff
from pydantic import BaseModel, ConfigDict, Field

from storage.archives import open_rows
from storage.models import read_bundle
from tasks.caching import can_pass
from tasks.execution import ExecutionConfig, executor_for
from tasks.references import ModelReference, RowsReference
from tasks.write_slide_map import SlideMapJob, SlideMapReference, SlideReference, write_slide_map

_COLUMNS = ["slide_id", "sha256", "uri", "frame", "spacing_um", "tissue_share"]


class SlideMapConfig(BaseModel):
    """Which regions of a slide are outlined."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float | None = Field(default=None, description="score from which a pixel belongs to a region; the card's when not given")
    least_area_um2: float = Field(default=1000, ge=0, description="smaller regions are left out; 1000 is 36 µm across, a few cells")


def list_slides(rows: RowsReference) -> list[SlideReference]:
    """The slides whose tiles are among the rows, in the order of their first; one pass over a few columns.

    What curation cut from a slide has a slide, a spacing and a share of tissue; a slide without a single tile is not listed.
    """
    slides: dict[str, SlideReference] = {}
    first_row = 0
    for table in open_rows(**rows).iterate_rows(_COLUMNS):
        tiles = table["slide_id"].notna() & table["frame"].isna() & table["spacing_um"].notna() & table["tissue_share"].notna()
        keys = table["sha256"].where(tiles).fillna("").to_numpy(str)
        begins = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.empty(0, int)
        for start, stop in zip(begins.tolist(), [*begins[1:].tolist(), len(keys)], strict=True):
            if not keys[start]:
                continue
            row = table.iloc[start]
            reference = SlideReference(slide_id=row["slide_id"], uri=row["uri"], sha256=row["sha256"], spans=[])
            spans = slides.setdefault(row["sha256"], reference)["spans"]
            if spans and spans[-1][1] == first_row + start:
                spans[-1] = (spans[-1][0], first_row + stop)
            else:
                spans.append((first_row + start, first_row + stop))
        first_row += len(table)
    return list(slides.values())


def find_threshold(model: ModelReference, config: SlideMapConfig) -> float | None:
    """The score from which a pixel is abnormal: the one that is given, or the card's preferred; None where it has none.

    A detector without maps has an image's, which is what its heatmap shows.
    """
    if config.threshold is not None:
        return config.threshold
    thresholds = read_bundle(model["uri"], digest=model["digest"]).card["calibration"].get("thresholds", {})
    found = thresholds.get("pixel", thresholds.get("image"))
    return None if found is None else float(found["value"])


def _retry(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and can_pass(error)


@task(
    name="assemble slide",
    task_run_name="map of {job[slide][slide_id]}",
    retries=3,
    retry_delay_seconds=exponential_backoff(2),
    retry_jitter_factor=1,
    retry_condition_fn=_retry,
)
def assemble_slide(job: SlideMapJob, *, execution: ExecutionConfig) -> SlideMapReference:
    """Make a slide's heatmap and its regions, where they are not there yet or its scores have changed."""
    return executor_for(execution).run(write_slide_map, job)
