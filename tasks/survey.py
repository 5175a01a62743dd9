"""What there is to curate: the sources' items with the digests of their files, dealt into batches that stay as they are."""

import json
from collections.abc import Callable, Iterable, Sequence

import pandas as pd

from storage import filesystems
from storage.datasets.registry import AnySource, list_items
from storage.datasets.source import SourceError, SourceItem
from storage.slides import is_slide
from tasks.caching import digest_of
from tasks.progress import show_progress
from tasks.references import BatchReference, ItemReference

_PICTURES_A_BATCH = 100


def survey(sources: Sequence[AnySource], *, store: str) -> list[ItemReference]:
    """List the sources and take the digest of each file; what is missing is listed with the reason.

    Raises:
        SourceError: a source that cannot be used, or one picture that two sources list.
    """
    book = filesystems.FingerprintBook(filesystems.join(store, "fingerprints.parquet"))
    references = _refer_all(_list_once(sources), book)  # the listing is gone before the book is written, which takes memory too
    book.save()
    return references


def deal_batches(
    items: Sequence[ItemReference], *, store: str, alone: Callable[[ItemReference], bool] | None = None
) -> list[BatchReference]:
    """One batch a slide, and one for every hundred pictures.

    A picture stays in its batch for good: pictures that are added to an archive make batches of their own and leave those that are done
    as they are; one that changed has only its own batch done again.

    Args:
        items: of a survey.
        store: where the batches are kept, and the book of who is in which.
        alone: which items have a batch of their own; slides when not given.
    """
    alone = alone or (lambda item: item["unreadable"] is None and item["frame"] is None and is_slide(item["uri"]))
    book_uri = filesystems.join(store, "batches.parquet")
    known: dict[str, int] = dict(filesystems.read_table(book_uri).itertuples(index=False)) if filesystems.exists(book_uri) else {}
    together: dict[int, list[ItemReference]] = {}
    single, new = [], []
    for item in items:
        if alone(item):
            single.append(_write_batch([item], filesystems.name_of(item["uri"]), store))
        elif (number := known.get(_key(item))) is not None:
            together.setdefault(int(number), []).append(item)
        else:
            new.append(item)
    first = max(known.values(), default=-1) + 1
    for start in range(0, len(new), _PICTURES_A_BATCH):
        together[first + start // _PICTURES_A_BATCH] = new[start : start + _PICTURES_A_BATCH]
    if new:
        known |= {_key(item): number for number, batch in together.items() for item in batch}
        filesystems.write_table(book_uri, pd.DataFrame(sorted(known.items()), columns=["picture", "batch"]))
    return single + [_write_batch(batch, f"pictures {number}", store) for number, batch in sorted(together.items())]


def read_batch(batch: BatchReference) -> list[ItemReference]:
    """The items of a batch."""
    return list(filesystems.read_json(batch["uri"]))


def _write_batch(items: Sequence[ItemReference], name: str, store: str) -> BatchReference:
    uri = filesystems.join(store, "batches", f"{digest_of(items)[:32]}.json")
    if not filesystems.exists(uri):
        filesystems.write_bytes(uri, json.dumps(items).encode())
    return BatchReference(uri=uri, name=name, items=len(items))


def _list_once(sources: Sequence[AnySource]) -> list[SourceItem]:
    by_source = [list_items(source) for source in sources]
    if len(by_source) > 1:
        _check_listed_once(by_source)
    return [item for items in by_source for item in items]


def _refer_all(listed: Sequence[SourceItem], book: filesystems.FingerprintBook) -> list[ItemReference]:
    uris = list(dict.fromkeys(uri for item in listed for uri in (item.uri, _mask_of(item)) if uri is not None))
    with show_progress("survey", len(uris)) as bar:
        digests = dict(zip(uris, book.fingerprint_all(uris, advance=bar.advance), strict=True))
    return [_refer(item, digests) for item in listed]


def _refer(item: SourceItem, digests: dict[str, str | OSError]) -> ItemReference:
    mask_uri = _mask_of(item)
    digest, mask_digest = digests[item.uri], None if mask_uri is None else digests[mask_uri]
    lost = next((error for error in (digest, mask_digest) if isinstance(error, OSError)), None)
    return ItemReference(
        uri=item.uri,
        frame=item.frame,
        sha256=digest if isinstance(digest, str) else None,
        mask_sha256=mask_digest if isinstance(mask_digest, str) else None,
        unreadable=None if lost is None else f"{type(lost).__name__}: {lost}",
        dataset=item.dataset,
        subject_id=item.subject_id,
        label=item.label,
        lesion_id=item.lesion_id,
        slide_id=item.slide_id,
        finding=item.finding,
        mask_uri=mask_uri,
        partly_annotated=item.partly_annotated,
        split=item.split,
        spacing_um=item.spacing_um,
        site=item.site,
        skin_tone=item.skin_tone,
        projection=item.projection,
        excluded=item.excluded,
    )


def _mask_of(item: SourceItem) -> str | None:
    return item.mask_uri or item.annotation_uri


def _check_listed_once(by_source: Iterable[Iterable[SourceItem]]) -> None:
    seen: dict[tuple[str, str | None], tuple[int, str]] = {}
    for number, items in enumerate(by_source):
        for item in items:
            other, dataset = seen.setdefault((item.uri, item.frame), (number, item.dataset))
            if other != number:
                raise SourceError(f"{item.uri} is listed by two sources, {dataset} and {item.dataset}: leave it out of one of them")


def _key(item: ItemReference) -> str:
    return item["uri"] if item["frame"] is None else f"{item['uri']}#{item['frame']}"
