"""What there is to curate: the sources' items with the digests of their files, dealt into batches that stay as they are."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import eq
from typing import cast, overload

import numpy as np
import pyarrow as arrow

from methods.curation.text_columns import places_in
from storage import filesystems
from storage.datasets.registry import AnySource, list_items
from storage.datasets.source import SourceError, SourceItem
from storage.slides import is_slide
from tasks.progress import show_progress
from tasks.references import BatchReference, ItemReference

_PICTURES_A_BATCH = 100
_BOOK = arrow.schema([("picture", arrow.large_string()), ("batch", arrow.int64())])


class Surveyed(Sequence[ItemReference]):
    """The items of a survey. Each is put together when it is asked for: all of them as dictionaries are three times the listing."""

    def __init__(self, listed: Sequence[SourceItem], digests: Mapping[str, str | OSError]) -> None:
        self._listed = listed
        self._digests = [digests[item.uri] for item in listed]
        self._mask_digests = [None if (uri := _mask_of(item)) is None else digests[uri] for item in listed]

    def __len__(self) -> int:
        return len(self._listed)

    @overload
    def __getitem__(self, place: int) -> ItemReference: ...
    @overload
    def __getitem__(self, place: slice) -> list[ItemReference]: ...
    def __getitem__(self, place: int | slice) -> ItemReference | list[ItemReference]:
        if isinstance(place, slice):
            return [self[number] for number in range(len(self))[place]]
        return _refer(self._listed[place], self._digests[place], self._mask_digests[place])

    def __iter__(self) -> Iterator[ItemReference]:
        return map(_refer, self._listed, self._digests, self._mask_digests)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]  # as a list


def survey(sources: Sequence[AnySource], *, store: str, named: Iterable[str] = ()) -> Sequence[ItemReference]:
    """List the sources and take the digest of each file; what is missing is listed with the reason.

    Args:
        sources: where there are pictures.
        store: where digests are remembered.
        named: data sets that the configuration says something of (`tiling.by_dataset`).

    Raises:
        SourceError: a source that cannot be used, one picture that two sources list, or a named data set that none of them lists.
    """
    listed = _list_once(sources)
    _check_named(named, listed)
    book = filesystems.FingerprintBook(filesystems.join(store, "fingerprints.parquet"))
    items = Surveyed(listed, _fingerprint(listed, book))
    book.save()
    return items


def deal_batches(items: Sequence[ItemReference], *, store: str) -> list[BatchReference]:
    """One batch a slide, and one for every hundred pictures.

    A picture stays in its batch for good: pictures that are added to an archive make batches of their own and leave those that are done
    as they are; one that changed has only its own batch done again.

    Args:
        items: of a survey.
        store: where the batches are kept, and the book of who is in which.
    """
    single, pictures, keys = list[BatchReference](), list[int](), list[str]()
    for place, item in enumerate(items):
        if item["unreadable"] is None and item["frame"] is None and is_slide(item["uri"]):
            single.append(_write_batch([item], filesystems.name_of(item["uri"]), store))
        else:
            pictures.append(place)
            keys.append(_key(item))
    numbers = _number_batches(keys, filesystems.join(store, "batches.parquet"))
    order = np.argsort(numbers, kind="stable")
    ends = np.flatnonzero(np.diff(numbers[order], append=-1)) + 1
    together = [order[start:end].tolist() for start, end in zip([0, *ends.tolist()], ends.tolist(), strict=False)]
    return single + [_write_batch([items[pictures[i]] for i in batch], f"pictures {numbers[batch[0]]}", store) for batch in together]


def _number_batches(keys: Sequence[str], book_uri: str) -> np.ndarray:
    """(n,) int64: the batch of each picture, which the book remembers."""
    known = filesystems.read_book(book_uri, _BOOK)
    before, texts = known["batch"].to_numpy(), arrow.array(keys, arrow.large_string())
    numbers = np.append(before, -1)[places_in(texts, known["picture"])]
    new = np.flatnonzero(numbers < 0)
    if len(new):
        learned = texts.take(new).dictionary_encode()  # a picture may be listed twice
        of_each = before.max(initial=-1) + 1 + np.arange(len(learned.dictionary)) // _PICTURES_A_BATCH
        numbers[new] = of_each[learned.indices.to_numpy()]
        rows = arrow.table([learned.dictionary, of_each], schema=_BOOK)
        filesystems.write_book(book_uri, arrow.concat_tables([known, rows]), by="picture")
    return numbers


def read_batch(batch: BatchReference) -> list[ItemReference]:
    """The items of a batch."""
    columns = filesystems.read_json(batch["uri"])
    return [cast(ItemReference, dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)]


def _write_batch(items: Sequence[ItemReference], name: str, store: str) -> BatchReference:
    columns = {name: [item[name] for item in items] for name in ItemReference.__annotations__}  # type: ignore[literal-required]
    content = json.dumps(columns).encode()
    uri = filesystems.join(store, "batches", f"{hashlib.sha256(content).hexdigest()[:32]}.json")
    if not filesystems.exists(uri):
        filesystems.write_bytes(uri, content)
    return BatchReference(uri=uri, name=name, items=len(items))


def _list_once(sources: Sequence[AnySource]) -> list[SourceItem]:
    by_source = [list_items(source) for source in sources]
    if len(by_source) > 1:
        _check_listed_once(by_source)
    return [item for items in by_source for item in items]


def _fingerprint(listed: Sequence[SourceItem], book: filesystems.FingerprintBook) -> dict[str, str | OSError]:
    uris = list(dict.fromkeys(uri for item in listed for uri in (item.uri, _mask_of(item)) if uri is not None))
    with show_progress("survey", len(uris)) as bar:
        return dict(zip(uris, book.fingerprint_all(uris, advance=bar.advance), strict=True))


def _refer(item: SourceItem, digest: str | OSError, mask_digest: str | OSError | None) -> ItemReference:
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
        mask_uri=_mask_of(item),
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


def _check_named(named: Iterable[str], listed: Iterable[SourceItem]) -> None:
    wanted = set(named)
    if wanted and (unknown := sorted(wanted - (there := {item.dataset for item in listed}))):
        raise SourceError(f"tiling.by_dataset names {unknown}, which no source lists; the data sets listed are {sorted(there)}")


def _check_listed_once(by_source: Iterable[Iterable[SourceItem]]) -> None:
    seen: dict[tuple[str, str | None], tuple[int, str]] = {}
    for number, items in enumerate(by_source):
        for item in items:
            other, dataset = seen.setdefault((item.uri, item.frame), (number, item.dataset))
            if other != number:
                raise SourceError(f"{item.uri} is listed by two sources, {dataset} and {item.dataset}: leave it out of one of them")


def _key(item: ItemReference) -> str:
    return item["uri"] if item["frame"] is None else f"{item['uri']}#{item['frame']}"
