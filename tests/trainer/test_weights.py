"""Weights to start from: which files, which of their tensors serve which of the model's, and one line for what does not fit."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from data_pipeline.errors import UserError
from trainer import weights
from trainer.config import RunConfig, load
from trainer.sections import InitSection
from trainer.weights import Match, checksum, files_of, match, renamed, rules_of, stored_shapes, summary

SHAPES = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from([(1,), (2, 3)]))
STAGES = "curriculum.stages=[{name: s, frames: 5, height: 32, width: 32, tokens_per_step: 256, promotion: {max_steps: 1}}]"


def refused(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        weights.resolved(load([STAGES, *arguments]))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder of two shards and a config."""
    save_file({"a": np.zeros((2, 3), np.float32)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": np.ones(4, np.float32)}, tmp_path / "model-00002-of-00002.safetensors")
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


@given(SHAPES, SHAPES)
def test_every_tensor_is_taken_or_named(own: dict[str, tuple[int, ...]], stored: dict[str, tuple[int, ...]]) -> None:
    found = match(own, stored, [])
    assert all(own[name] == stored[name] for name in found.taken)
    assert len(found.taken) + len(found.missing) + len(found.other_shape) == len(own)
    assert len(found.taken) + len(found.left_over) + len(found.other_shape) == len(stored)
    assert (found.complaint is None) == (own == stored)


def test_rules_apply_in_turn_and_an_empty_name_leaves_a_tensor_out() -> None:
    rules = rules_of({r"^model\.": "", r"^layers\.(\d+)\.": r"blocks.\1.", r"self_attn": "attention", r"^ema_.*": ""})
    names = ["model.layers.11.self_attn.q.weight", "ema_decay", "mask_token"]
    assert [renamed(name, rules) for name in names] == ["blocks.11.attention.q.weight", "", "mask_token"]
    found = match({"mask_token": (1,)}, {"mask_token": (1,), "ema_decay": (9,)}, rules)
    assert found == Match({"mask_token": "mask_token"})


def test_two_tensors_of_one_name_are_both_named() -> None:
    with pytest.raises(UserError, match=r"train\.init\.map gives a\.w and b\.w the same name w"):
        match({"w": (1,)}, {"a.w": (1,), "b.w": (1,)}, rules_of({"^[ab].": ""}))


@pytest.mark.parametrize("bad", [{"(": ""}, {"a": r"\1"}])
def test_a_bad_rule_is_named(bad: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"train\.init\.map: .* is no regular expression and replacement"):
        rules_of(bad)


def test_a_folder_of_shards_is_one_model(shards: Path) -> None:
    assert stored_shapes(str(shards)) == {"a": (2, 3), "b": (4,)}
    assert [path.name for path in files_of(str(shards / "model-00002-of-00002.safetensors"))] == ["model-00002-of-00002.safetensors"]


def test_checksums_are_those_of_sha256sum(shards: Path) -> None:
    shell = "sha256sum config.json *.safetensors | sha256sum; sha256sum model-00001-of-00002.safetensors"
    folder, file = (line.split()[0] for line in subprocess.check_output(shell, shell=True, cwd=shards, text=True, timeout=30).splitlines())
    assert checksum(str(shards)) == folder
    assert checksum(str(shards / "model-00001-of-00002.safetensors")) == file


def test_a_tensor_in_two_shards_is_refused(shards: Path) -> None:
    save_file({"a": np.zeros(1, np.float32)}, shards / "model.safetensors")
    with pytest.raises(UserError, match=r"the tensor a stands in another file of the folder too"):
        stored_shapes(str(shards))


def test_a_damaged_file_is_named(shards: Path) -> None:
    (shards / "model-00002-of-00002.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors is not a safetensors file"):
        stored_shapes(str(shards))


def test_missing_files_are_one_line(tmp_path: Path) -> None:
    assert f"train.init.from={tmp_path / 'no'} does not exist: give an exported folder" in refused(f"train.init.from={tmp_path / 'no'}")
    assert f"train.init.from={tmp_path} holds no .safetensors file" in refused(f"train.init.from={tmp_path}")


def test_a_key_map_may_be_a_file_and_ends_up_in_the_recipe(shards: Path, tmp_path: Path) -> None:
    path = tmp_path / "map.yaml"
    path.write_text("'^a$': x\n'^b$':\n")
    config = weights.resolved(load([STAGES, f"train.init.from={shards}", f"train.init.map={path}"]))
    assert config.train.init.map == {"^a$": "x", "^b$": ""}
    assert config.train.init.sha256 == checksum(str(shards))
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config
    assert "train.init.map" in refused(f"train.init.from={shards}", "train.init.map=/no/such.yaml")
    path.write_text("- a\n")
    assert f"train.init.map={path} is no mapping" in refused(f"train.init.from={shards}", f"train.init.map={path}")


def test_a_changed_file_is_one_line(shards: Path) -> None:
    old = checksum(str(shards))
    save_file({"b": np.zeros(4, np.float32)}, shards / "model-00002-of-00002.safetensors")
    message = refused(f"train.init.from={shards}", f"train.init.sha256={old}")
    assert (
        message == f"train.init.from={shards} was changed: its sha256 is {checksum(str(shards))}, the run started from {old}; put it back"
    )


def test_the_summary_is_one_line_or_two() -> None:
    init = InitSection.model_validate({"from": "/w"})
    assert summary(Match({"a": "a", "b": "b"}), init) == ["init  2 of 2 tensors from /w"]
    partly = Match({"a": "a"}, missing=("m",), left_over=("x", "y"), other_shape=("s is (1,), not (2,)",))
    assert summary(partly, init) == [
        "init  1 of 3 tensors from /w",
        "      1 missing (m), 2 left over (x, ...), 1 of another shape (s is (1,), not (2,))",
    ]
