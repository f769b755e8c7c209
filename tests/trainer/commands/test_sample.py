"""`sample` from a user's side: images, videos and tables go in, files that play come out, the same seed gives the same bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from data_pipeline.write_video import write_mp4
from model.sampling import SamplingConfig, constant_guidance
from trainer.commands.sample import parser
from trainer.commands.sampling_options import sampling_of
from trainer.inspection.explain import frame_maps, unit_of_frames
from trainer.inspection.start import fitting_size, frames_for
from trainer.inspection.trained import FILE
from trainer.main import main

pytestmark = pytest.mark.timeout(200)


def frames_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def refused(arguments: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a refused call prints."""
    assert main(["sample", *map(str, arguments)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    return printed


def test_an_image_becomes_a_video_with_progress_and_a_sheet(
    exported: Path, cat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made" / "out.mp4"
    assert main(["sample", str(exported), "--image", str(cat), "--text", "a cat", "--seconds", "1.6", "-o", str(out), "--explain"]) == 0
    assert frames_of(out).shape == (13, 32, 32, 3)
    printed = capsys.readouterr().out
    assert [f"{done} of 13 frames" in printed for done in (1, 5, 9, 13)] == [True] * 4
    assert "beyond the 9x32x32 it was trained on" in printed
    assert Image.open(out.with_suffix(".png")).size[0] > 9 * 32
    assert Image.open(out.with_name("out-explained.png")).size[0] >= 520


def test_the_same_seed_gives_the_same_file_and_another_seed_another(exported: Path, cat: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        assert main(["sample", str(exported), f"image={cat}", f"seed={seed}", f"out={tmp_path / name}.mp4"]) == 0
    one, two, three = ((tmp_path / f"{name}.mp4").read_bytes() for name in ("one", "two", "three"))
    assert one == two != three


def test_a_video_is_continued_from_its_first_frames(exported: Path, tmp_path: Path) -> None:
    moving = np.stack([np.full((48, 64, 3), 10 * number, np.uint8) for number in range(20)])
    write_mp4(tmp_path / "start.mp4", moving, 8)
    out = tmp_path / "out.mp4"
    assert (
        main(["sample", str(exported), "--video", str(tmp_path / "start.mp4"), "--given-seconds", "0.7", "--size", "32x48", "-o", str(out)])
        == 0
    )
    video = frames_of(out).astype(int)
    assert video.shape == (17, 32, 48, 3)
    assert np.abs(video[:5] - moving[:5, :1, :1]).mean() < 12


def test_a_table_of_starts_gives_a_file_each_and_one_sheet(exported: Path, cat: Path, tmp_path: Path) -> None:
    table = tmp_path / "starts.csv"
    table.write_text("image,text,seed\ncat.png,a cat,1\ncat.png,a dog,2\n")
    assert main(["sample", str(exported), "--table", str(table), "--seconds", "0.6", "-o", str(tmp_path / "many")]) == 0
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == ["00-cat.mp4", "01-cat.mp4", "contact-sheet.png"]
    alone = tmp_path / "alone.mp4"
    assert main(["sample", str(exported), "--image", str(cat), "--text", "a dog", "--seed", "2", "--seconds", "0.6", "-o", str(alone)]) == 0
    assert alone.read_bytes() == (tmp_path / "many" / "01-cat.mp4").read_bytes()


def test_a_gif_shows_every_frame(exported: Path, cat: Path, tmp_path: Path) -> None:
    assert main(["sample", str(exported), "--image", str(cat), "--seconds", "0.6", "-o", str(tmp_path / "out.gif")]) == 0
    assert Image.open(tmp_path / "out.gif").n_frames == 5


def test_a_model_that_was_trained_on_stills_begins_from_text_alone(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(exported, folder := tmp_path / "with-stills")
    described = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps(described | {"buckets": ["1x32x32", *described["buckets"]]}))
    firsts = []
    for seed in ("1", "1", "2"):
        out = tmp_path / f"{len(firsts)}.mp4"
        assert main(["sample", str(folder), "--text", "a red cat", "--seconds", "1", "--seed", seed, "--explain", "-o", str(out)]) == 0
        firsts.append(frames_of(out)[0])
        assert frames_of(out).shape == (9, 32, 32, 3)
    assert "starts scaled" not in capsys.readouterr().out
    assert np.array_equal(firsts[0], firsts[1])
    assert not np.array_equal(firsts[0], firsts[2])


def test_a_size_is_brought_to_what_the_tokenizer_cuts(
    exported: Path, cat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", str(exported), "--image", str(cat), "--size", "45x31", "--seconds", "0.6", "-o", str(tmp_path / "o.mp4")]) == 0
    assert "40x24" in (line := capsys.readouterr().out)
    assert "--size 45x31 is no multiple of the tokenizer's 8x8" in line
    assert frames_of(tmp_path / "o.mp4").shape[1:3] == (40, 24)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "no.png"], "--image no.png does not exist"),
        (["--image", "text.png"], "--image text.png is no image that can be read"),
        (["--video", "text.png"], "--video text.png is no video that can be read"),
        (["--table", "text.png"], "--table text.png needs the columns image or video, text"),
        ([], "give one of --image, --video, --table, or --text alone"),
        (["--text", "a cat"], "the model was not trained to begin from text alone, no stage of it mixed stills in"),
        (["--image", "cat.png", "--video", "text.png"], "argument --video: not allowed with argument --image"),
        (["--image", "cat.png", "-o", "out.avi"], "-o out.avi: give a file that ends in .mp4 or .gif"),
        (["--image", "cat.png", "--size", "4x4"], "--size 4x4 is too small: the tokenizer needs at least 8x8"),
        (["--image", "cat.png", "--size", "big"], "'big' is not HEIGHTxWIDTH, as in 96x128"),
        (["--image", "cat.png", "--condition", "speed=2"], "--condition speed=2: write NAME=VALUE with a name of fps, motion"),
        (["--image", "cat.png", "--condition", "motion=0.2"], "the model was not trained with the condition 'motion'"),
        (["--image", "cat.png", "--temperature", "warm"], "--temperature warm: this is not a number"),
        (["--image", "cat.png", "--iterations", "0"], "iterations and head_steps must be at least 1"),
        (["--image", "cat.png", "--seconds", "-1"], "--seconds -1.0 must be positive"),
        (["--image", "cat.png", "--colour", "red"], "unrecognized arguments: --colour red; see python trainer/main.py sample --help"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, exported: Path, cat: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(cat.parent)
    Path("text.png").write_text("not a picture")
    assert message in refused([exported, *arguments], capsys)
    assert not Path("out.mp4").exists()


def test_a_folder_that_is_no_model_is_named(cat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "/no/such does not exist" in refused(["/no/such", "--image", cat], capsys)
    assert f"{tmp_path} is no run's folder, no checkpoint and no exported model" in refused([tmp_path, "--image", cat], capsys)


def test_the_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["sample", "--help"])
    assert ended.value.code == 0
    assert "python trainer/main.py sample runs/toy --image cat.png" in capsys.readouterr().out


def test_options_change_the_recipe_s_way_to_sample_and_nothing_else() -> None:
    recipe = SamplingConfig(iterations=16, window=3, conditions={"fps": 8.0})
    line = [
        "m",
        "--image",
        "c",
        "--guidance",
        "2",
        "sample.head_steps=7",
        "--temperature=0.9",
        "--guidance-schedule",
        "constant",
        "--condition",
        "motion=0.5",
    ]
    made = sampling_of(parser().read(line), recipe)
    assert (made.iterations, made.window, made.guidance, made.head_steps) == (16, 3, 2.0, 7)
    assert (made.tau(0), made.tau(5), made.guidance_schedule) == (0.9, 0.9, constant_guidance)
    assert made.conditions == {"fps": 8.0, "motion": 0.5}


def test_sizes_and_lengths_are_those_a_tokenizer_has() -> None:
    assert fitting_size((97, 50), (4, 8, 16)) == (96, 48)
    assert fitting_size((99, 50), (4, 3, 5)) == (96, 50)  # a video file's sides are even
    assert [frames_for(seconds, 8, 4) for seconds in (0.1, 1, 2, 4)] == [5, 9, 17, 33]


def test_the_reveal_maps_name_each_token_s_iteration() -> None:
    order = np.array([2, 0, 3, 1])
    (single,) = frame_maps([order], (2, 2), 4)
    assert [int(single.flatten()[token]) for token in order] == sorted(single.flatten())
    first, second = frame_maps([np.arange(8)], (2, 2), 2)
    assert first.max() <= second.min()
    assert unit_of_frames([order, np.arange(8), order], 4) == [0, 1, 1, 3]
