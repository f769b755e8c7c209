"""Long lists of videos: kept on disk, sorted by name, joined to their captions, in memory that does not grow with them."""

import json
import tracemalloc
from collections import Counter
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.chunks import plan_chunks
from data_pipeline.entry_table import EntryTable, Unmatched
from data_pipeline.listings import Entry
from data_pipeline.manifest import dataset_fingerprint
from data_pipeline.sources import list_sources
from data_pipeline.spec import fingerprint

from .conftest import SPEC

NAMES = st.sampled_from([f"{folder}{name}" for folder in ("", "a/", "b/c/") for name in ("x.mp4", "y.mp4", "ü.mp4", "\udcff.mp4")])


@given(st.sets(NAMES, min_size=1), st.dictionaries(NAMES, st.text(max_size=3)))
def test_a_caption_goes_to_the_path_it_names_or_to_the_only_file_of_that_name(names: set[str], captions: dict[str, str]) -> None:
    table = EntryTable(Entry(name, f"/{name}", caption="own") for name in names)
    assert table.caption(captions.items()) is None
    sharing = Counter(PurePosixPath(name).name for name in names)
    chosen = {}
    for name in names:
        bare = PurePosixPath(name).name
        row = name if name in captions else bare if bare in captions and sharing[bare] == 1 else None
        chosen[name] = row
    expected = [Entry(name, f"/{name}", caption="own" if (row := chosen[name]) is None else captions[row]) for name in sorted(names)]
    assert list(table.rows(0, len(table))) == expected
    unknown = [row for row in captions if row not in chosen.values()]
    assert table.unknown_captions() == Unmatched(len(unknown), tuple(unknown[:5]))


def test_names_and_caption_rows_that_come_twice_are_told() -> None:
    table = EntryTable(Entry(name, name) for name in ("b", "a", "c", "a"))
    assert table.twice() == "a"
    assert EntryTable([Entry("a", "a")]).twice() is None
    assert EntryTable([Entry("a", "a")]).caption([("a", "x"), ("b", "y"), ("a", "z")]) == "a"


def test_a_long_list_is_one_fingerprint_however_it_is_held(tmp_path: Path) -> None:
    sources = list_sources(write_list(tmp_path / "list.jsonl", 50)).sources
    inputs = [[source.name, source.size(), source.caption] for source in sources]
    assert fingerprint(iter(inputs), {"a": 1}) == fingerprint(inputs, {"a": 1})
    assert fingerprint(iter([]), 2) == fingerprint([], 2)
    assert dataset_fingerprint(sources, SPEC) == dataset_fingerprint(tuple(sources), SPEC)


def write_list(path: Path, count: int) -> Path:
    with path.open("w") as file:
        for number in range(count):
            row = {"file": f"videos/{number * 7919 % count:08d}.mp4", "caption": f"someone walks past door {number} and waves"}
            file.write(json.dumps(row) + "\n")
    return path


@pytest.mark.parametrize("count", [5_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_memory_grows_by_a_few_bytes_per_entry(tmp_path: Path, count: int) -> None:
    def peak(count: int) -> int:
        path = write_list(tmp_path / f"{count}.jsonl", count)
        tracemalloc.start()
        sources = list_sources(path).sources
        plan = plan_chunks(sources, SPEC)
        assert sum(len(chunk.sources) for chunk in (plan[0], plan[-1])) <= 2 * SPEC.sources_per_shard
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return held

    once, twice = peak(count), peak(2 * count)
    assert (twice - once) / count < 24, (once, twice)
