"""From a run to an exported folder, which is the whole model: it loads in one line without the training libraries, and samples what the
checkpoint samples."""

from __future__ import annotations

import json
import math
import shutil
import struct
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from model.config import named_size
from model.videomar import VideoMAR
from trainer.inspection.continuation import continued
from trainer.inspection.start import read_image
from trainer.inspection.trained import open_trained
from trainer.main import main
from trainer.weights import other_fields, stored_shapes

pytestmark = pytest.mark.timeout(200)
REPOSITORY = Path(__file__).parents[3]
BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "deepspeed", "megatron"):
            raise ImportError(name + " is not installed here")
sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture(scope="module")
def folder(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("export") / "exported"
    assert main(["export", str(tiny_run), "-o", str(made), "--license", "apache-2.0"]) == 0
    return made


def refused(arguments: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    return printed


def test_the_folder_is_weights_configuration_tokenizer_description_and_card(folder: Path) -> None:
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    tokenizer = ["tokenizer/linear.safetensors", "tokenizer/tokenizer.json"]
    assert found == ["README.md", "config.json", "model.safetensors", *tokenizer, "videomar.json"]


def test_sampling_from_it_is_bit_for_bit_sampling_from_the_checkpoint(tiny_run: Path, folder: Path, cat: Path, tmp_path: Path) -> None:
    made = []
    for path in (tiny_run, folder):
        trained = open_trained(path)
        assert {parameter.dtype for parameter in trained.model.parameters()} == {torch.float32}
        made.append(continued(trained, read_image(cat, (32, 32)), "a red cat", 4, trained.sampling, 7, lambda frames: None)[0])
        assert main(["sample", str(path), "--image", str(cat), "--seed", "7", "-o", str(tmp_path / f"{len(made)}.mp4")]) == 0
    assert np.array_equal(*made)
    assert np.isfinite(made[0]).all()
    assert (tmp_path / "1.mp4").read_bytes() == (tmp_path / "2.mp4").read_bytes()


def test_it_loads_in_one_line_and_samples_without_the_training_libraries(folder: Path, cat: Path, tmp_path: Path) -> None:
    use = f"""
from model import export
model = export.load({str(folder)!r})
from trainer.main import main
assert main(["sample", {str(folder)!r}, "--image", {str(cat)!r}, "--seconds", "0.6", "-o", {str(tmp_path / "out.mp4")!r}]) == 0
assert not {{"ray", "deepspeed", "megatron"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", BLOCKED + use], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.mp4").stat().st_size > 0


def test_the_notebook_runs_from_top_to_bottom(folder: Path, cat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cat.parent)
    shutil.copytree(folder, "exported")
    notebook = json.loads((REPOSITORY / "trainer" / "inspection" / "example.ipynb").read_text())
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec("".join(cell["source"]), names)
    assert np.shape(names["video"]) == (9, 32, 32, 3)


def test_the_card_tells_recipe_data_curriculum_metrics_and_licence(folder: Path, tiny_run: Path) -> None:
    text = (folder / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert (front["license"], front["pipeline_tag"]) == ("apache-2.0", "image-to-video")
    trained = open_trained(tiny_run)
    assert trained.dataset in text
    assert trained.codec.tokenizer.fingerprint in text
    assert trained.codec.text.fingerprint in text
    rows = [line for line in text.splitlines() if line.startswith(("| short |", "| longer |"))]
    assert [row.split(" | ")[1:3] for row in rows] == [["5x32x32", "4"], ["9x32x32", "4"]]
    assert all(float(row.split(" | ")[3].rstrip(" |")) > 0 for row in rows)
    recipe = yaml.safe_load(text.split("```yaml")[1].split("```")[0])
    assert recipe["model"]["size"] == "tiny"
    assert str(tiny_run.parent) not in text  # a card that is shared tells no folder of the machine


def test_the_description_holds_the_statistics_that_latents_are_normalised_with(folder: Path, tiny_run: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (9, 32, 32, 3), np.uint8)
    run, exported = open_trained(tiny_run).codec, open_trained(folder).codec
    assert np.array_equal(run.encode(frames), exported.encode(frames))
    assert np.array_equal(run.decode(run.encode(frames)), exported.decode(exported.encode(frames)))


def test_an_export_over_an_export_replaces_it_and_over_anything_else_is_refused(
    tiny_run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path / "again")
    assert main(["export", str(tiny_run), "-o", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    assert "is not empty and no exported model" in refused(["export", tiny_run, "-o", tmp_path / "thesis"], capsys)
    assert "is an exported folder already" in refused(["export", folder, "-o", tmp_path / "third"], capsys)


def test_what_is_missing_or_swapped_in_a_folder_is_named(
    folder: Path, cat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(name: str) -> Path:
        return Path(shutil.copytree(folder, tmp_path / name))

    (bare := broken("bare") / "videomar.json").unlink()
    assert "holds weights but no videomar.json" in refused(["sample", bare.parent, "--image", cat], capsys)
    other = broken("other") / "videomar.json"
    other.write_text(other.read_text().replace(open_trained(folder).codec.tokenizer.fingerprint, "0" * 32))
    assert "holds another tokenizer than the model was trained with" in refused(["sample", other.parent, "--image", cat], capsys)
    (torn := broken("torn") / "model.safetensors").unlink()
    assert "model.safetensors" in refused(["sample", torn.parent, "--image", cat], capsys)
    (later := broken("later") / "videomar.json").write_text(json.dumps(json.loads((folder / "videomar.json").read_text()) | {"format": 9}))
    assert "has format 9, this version reads 1" in refused(["sample", later.parent, "--image", cat], capsys)


def test_the_exported_1_4b_has_its_shapes_and_1_383_billion_parameters(tmp_path: Path) -> None:
    """A folder with the real header over a file of holes: every shape is there, 5.5 GB are not."""
    with torch.device("meta"):
        model = VideoMAR(named_size("videomar-1.4b"))
    (tmp_path / "config.json").write_text(json.dumps(asdict(model.config)))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    header, offset = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset := offset + 4 * math.prod(shape)]}
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    found = stored_shapes(str(tmp_path))
    assert found == shapes
    assert other_fields(str(tmp_path), model.config) == ()
    assert round(sum(map(math.prod, found.values())) / 1e9, 3) == 1.383
    assert found["blocks.35.ffn.up.weight"] == (6144, 1536)
    assert found["null_text"] == (300, 1536)


def test_a_commit_and_its_run_are_the_same_model(tiny_run: Path, cat: Path, tmp_path: Path) -> None:
    step = max((tiny_run / "checkpoints").iterdir())
    for number, model in enumerate((tiny_run, step, next(step.iterdir()))):
        assert main(["sample", str(model), "--image", str(cat), "-o", str(tmp_path / f"{number}.mp4")]) == 0
    files = {(tmp_path / f"{number}.mp4").read_bytes() for number in range(3)}
    assert len(files) == 1


def test_a_run_whose_data_set_has_changed_is_refused(
    tiny_run: Path, tiny_dataset: Path, cat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = tmp_path / "runs" / "tiny", tmp_path / "runs" / "datasets" / tiny_dataset.name
    shutil.copytree(tiny_run, run)
    shutil.copytree(tiny_dataset, data)
    lines = (run / "events.jsonl").read_text().replace(str(tiny_dataset), f"/gone/{tiny_dataset.name}")
    (run / "events.jsonl").write_text(lines)
    out = tmp_path / "moved.mp4"
    assert main(["sample", str(run), "--image", str(cat), "--seconds", "0.6", "-o", str(out)]) == 0
    for path in data.rglob("manifest*.json"):  # of every generation: a commit names the first
        path.write_text(path.read_text() + "\n")
    assert "was trained on another data set" in refused(["sample", run, "--image", cat], capsys)
