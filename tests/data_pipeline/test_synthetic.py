import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import synthetic
from data_pipeline.decode import Resizer, VideoFile
from data_pipeline.order import keyed_generator
from data_pipeline.synthetic import Body, Scene, caption, draw_scene, render, simulate, write_synthetic
from data_pipeline.write_video import write_mp4

from .conftest import bytes_by_name

WAVES = (2.0, 0.5, 0.25, 1.0)


def body(
    x: float,
    y: float,
    vx: float = 0,
    radius: float = 0.1,
    shape: str = "circle",
    colour: str = "red",
    spin: float = 0,
) -> Body:
    return Body(shape, colour, radius, position=(x, y), velocity=(vx, 0), angle=0, spin=spin)


def test_files_decode_and_every_one_has_a_caption(synthetic_videos: Path) -> None:
    with (synthetic_videos / "captions.csv").open() as file:
        captions = {row["file"]: row["caption"] for row in csv.DictReader(file)}
    files = sorted(path.name for path in synthetic_videos.glob("*.mp4"))
    assert sorted(captions) == files
    assert len(files) == 12
    pictures = list(VideoFile(synthetic_videos / files[0]))
    assert [(p.height, p.width) for p in pictures] == [(64, 64)] * 20
    assert pictures[8].time == pytest.approx(1)


def test_the_same_request_gives_the_same_files_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        write_synthetic(tmp_path / name, clips=2, seed=seed, size=32, frames=4)
    one, two, three = (bytes_by_name(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert one["clip-00000.mp4"] != three["clip-00000.mp4"]


def test_work_is_skipped_only_when_the_folder_holds_exactly_the_request(tmp_path: Path) -> None:
    def times() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

    write_synthetic(tmp_path, clips=3, seed=0, size=32, frames=4)
    before = times()
    write_synthetic(tmp_path, clips=3, seed=0, size=32, frames=4)
    assert times() == before
    write_synthetic(tmp_path, clips=2, seed=0, size=32, frames=4)
    assert sorted(times()) == ["captions.csv", "clip-00000.mp4", "clip-00001.mp4", "synthetic.json"]
    assert all(times()[name] != before[name] for name in times())


def test_of_two_writers_of_one_folder_the_faster_is_used_and_nothing_is_ever_half_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, request = tmp_path / "videos", {"clips": 2, "seed": 0, "size": 32, "frames": 4}

    def overtaken(path: Path, frames: np.ndarray, fps: int) -> None:
        monkeypatch.setattr(synthetic, "write_mp4", write_mp4)
        assert not folder.exists()
        write_synthetic(folder, **request)
        inodes.update((file, file.stat().st_ino) for file in folder.iterdir())
        write_mp4(path, frames, fps)

    inodes: dict[Path, int] = {}
    monkeypatch.setattr(synthetic, "write_mp4", overtaken)
    write_synthetic(folder, **request)
    assert len(inodes) == 4
    assert {file: file.stat().st_ino for file in folder.iterdir()} == inodes
    assert list(tmp_path.iterdir()) == [folder]


def test_a_drawing_that_was_interrupted_leaves_nothing_and_is_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path, frames: np.ndarray, fps: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "write_mp4", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_synthetic(tmp_path / "videos", clips=2, seed=0, size=32, frames=4)
    assert not list(tmp_path.iterdir())
    write_synthetic(tmp_path / "videos", clips=2, seed=0, size=32, frames=4)
    assert len(list(tmp_path.glob("videos/*.mp4"))) == 2


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(OSError, match="not empty"):
        write_synthetic(tmp_path, clips=1, seed=0, size=32, frames=4)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_bodies_stay_inside_and_keep_their_energy(seed: int) -> None:
    scene = draw_scene(keyed_generator(seed))
    path = simulate(scene.bodies, 34, 8)
    radius = np.array([b.radius for b in scene.bodies])[:, None]
    assert 1 <= len(scene.bodies) <= 3
    assert (path > radius - 0.02).all()
    assert (path < 1.02 - radius).all()


def test_bodies_bounce_off_walls_and_off_each_other() -> None:
    (wall,) = simulate((body(0.8, 0.5, vx=0.4),), 9, 8).transpose(1, 0, 2)
    assert wall[1, 0] > 0.8
    assert wall[8, 0] < wall[4, 0]
    left, right = simulate((body(0.3, 0.5, vx=0.4), body(0.7, 0.5)), 8, 8).transpose(1, 0, 2)
    assert left[7] == pytest.approx(left[6], abs=1e-6)  # equal masses exchange their velocities
    assert right[7, 0] > right[0, 0]


def test_captions_say_what_moves_where() -> None:
    scene = Scene(
        (body(0.2, 0.2, vx=-0.3), body(0.7, 0.7, shape="square", colour="orange", spin=1.0)),
        "striped",
        ("green", "white"),
        WAVES,
    )
    expected = "a red circle moves left and an orange square turns over a green and white striped background"
    assert caption(scene) == expected


def test_the_background_stays_and_edges_are_smooth() -> None:
    frames = render(Scene((body(0.3, 0.3, vx=0.3),), "gradient", ("blue", "white"), WAVES), 64, 8, 8)
    np.testing.assert_array_equal(frames[:, 40:], np.broadcast_to(frames[:1, 40:], frames[:, 40:].shape))
    disc = render(Scene((body(0.5, 0.5, radius=0.25),), "gradient", ("black", "black"), WAVES), 64, 1, 8)[0]
    levels = np.unique(disc[32, :, 0])
    assert len(levels) > 4


def test_different_clips_are_very_different(synthetic_videos: Path) -> None:
    resize = Resizer()
    firsts = [resize(next(iter(VideoFile(path))), 16, 16).astype(float) for path in sorted(synthetic_videos.glob("*.mp4"))]
    between = np.mean([np.abs(one - two).mean() for one in firsts for two in firsts if one is not two])
    assert between > 50
