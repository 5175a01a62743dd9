"""The maps of an archive's slides, one Prefect task a slide, when their tiles are scored."""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from prefect.futures import PrefectFuture

from storage.archives import Archive
from storage.tiff_levels import UnreadableSlideError
from tasks.archive_groups import submit_few
from tasks.archive_scoring import Slot, note_slides
from tasks.execution import ExecutionConfig
from tasks.progress import show_progress
from tasks.references import RowsReference
from tasks.slide_maps import SlideMapConfig, assemble_slide, find_threshold, list_slides
from tasks.write_slide_map import SlideMapError, SlideMapJob

logger = logging.getLogger(__name__)

_AT_ONCE = 8


def assemble_slides(archive: Archive, slots: list[Slot], config: SlideMapConfig, *, execution: ExecutionConfig) -> int:
    """Make the maps of all slides in all slots; returns how many there are. A slide that makes none is said and left out."""
    rows = RowsReference(uri=archive.uri, digest=archive.digest)
    slides = list_slides(rows)

    def jobs() -> Iterator[Callable[[], PrefectFuture[Any]]]:
        for slot in slots:
            threshold = find_threshold(slot.model, config)
            for slide in slides:
                job = SlideMapJob(
                    slide=slide,
                    rows=rows,
                    store_uri=slot.store.uri,
                    slides_uri=archive.slides_uri(slot.name, slot.version),
                    threshold=threshold,
                    least_area_um2=config.least_area_um2,
                )
                yield partial(assemble_slide.submit, job, execution=execution)

    made = 0
    if slides:
        with show_progress("map slides", len(slides) * len(slots)) as bar, submit_few(jobs(), at_once=_AT_ONCE) as futures:
            for future in futures:
                made += _is_made(future)
                bar.advance()
    for slot in slots:
        note_slides(archive, slot, len(slides))
    return made


def _is_made(future: PrefectFuture[Any]) -> bool:
    try:
        future.result()
    except (SlideMapError, UnreadableSlideError) as error:
        logger.warning("a slide has no map: %s", error)
        return False
    return True
