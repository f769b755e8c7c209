from pathlib import Path

import pytest

from data_pipeline.entry_table import Unmatched
from data_pipeline.errors import UserError
from data_pipeline.sources import list_sources


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_videos_are_found_in_subfolders_whatever_the_case_of_their_extension(tmp_path: Path) -> None:
    touch(tmp_path, "b.MP4", "a/z.mkv", "notes.txt", "captions.csv", ".hidden.mp4", "a dir with spaces/ü.webm")
    assert [s.name for s in list_sources(tmp_path).sources] == ["a dir with spaces/ü.webm", "a/z.mkv", "b.MP4"]


def test_ids_depend_on_the_relative_name_alone(tmp_path: Path) -> None:
    here, there = (list_sources(touch(tmp_path / name, "x/a.mp4", "b.mp4")).sources for name in ("here", "there"))
    assert [s.id for s in here] == [s.id for s in there]
    assert len({s.id for s in here}) == 2
    assert all(len(s.id) == 16 for s in here)


def test_a_single_file_is_a_data_set_of_one(tmp_path: Path) -> None:
    touch(tmp_path, "one.mp4", "two.mp4")
    (source,) = list_sources(tmp_path / "one.mp4").sources
    assert (source.name, source.path) == ("one.mp4", str(tmp_path / "one.mp4"))


def test_captions_join_by_relative_path_or_by_bare_name_and_what_is_left_over_is_told(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "sub/b.mp4", "sub/c.mp4", "d.mp4", "other/d.mp4")
    table = tmp_path / "captions.csv"
    table.write_text('file,caption\na.mp4,"a cat, asleep"\nb.mp4,by name\nd.mp4,the outer one\ngone.mp4,x\n', "utf-8-sig")
    found = list_sources(tmp_path, table)
    captions = {source.name: source.caption for source in found.sources}
    assert captions["a.mp4"] == "a cat, asleep"
    assert captions["sub/b.mp4"] == "by name"
    assert captions["d.mp4"] == "the outer one"
    assert found.without_caption == Unmatched(2, ("other/d.mp4", "sub/c.mp4"))
    assert found.unknown_captions == Unmatched(1, ("gone.mp4",))


def test_without_a_captions_file_captions_are_empty_and_none_is_missing(tmp_path: Path) -> None:
    found = list_sources(touch(tmp_path, "a.mp4"))
    assert found.sources[0].caption == ""
    assert found.without_caption == Unmatched()


def test_a_missing_or_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        list_sources(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no video in .*empty"):
        list_sources(touch(tmp_path / "empty", "readme.txt"))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"name,text\na.mp4,x\n", "no column 'caption'"),
        (b"", "no column"),
        (b"file,caption\na.mp4,\xff\xfe\n", "line 2, is not a UTF-8"),
        ("file,caption\na.mp4,x\nb.mp4,y\n".encode("utf-16"), "line 1, is not a UTF-8"),
        (b"caption,file\nx,a.mp4\n\nonly a caption\n", "line 4, has not one value per column"),
        (b"file,caption\na.mp4\n", "line 2, has not one value per column"),
        (b"file,caption\na.mp4,a cat, asleep\n", "line 2, has not one value per column"),
        (b"file,caption\na.mp4," + b"x" * 200_000, "line 2, is not a row"),
        (b"file,caption\na.mp4,x\na.mp4,y\n", "more than one row for a.mp4"),
        (None, "cannot be read"),
    ],
)
def test_an_unusable_captions_file_is_named_with_what_is_wrong(tmp_path: Path, content: bytes | None, named: str) -> None:
    touch(tmp_path, "a.mp4")
    table = tmp_path / "table.csv"
    if content is not None:
        table.write_bytes(content)
    with pytest.raises(UserError, match=rf"table\.csv.*{named}"):
        list_sources(tmp_path, table)
