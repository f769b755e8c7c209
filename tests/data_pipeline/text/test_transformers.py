"""Real T5 and Qwen2 classes, tiny and with random weights, saved in the real format."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from data_pipeline.buckets import Bucket
from data_pipeline.errors import UserError
from data_pipeline.spec import EncodeSpec
from data_pipeline.text import EachOnce, caption_hash, load_text, text_fingerprint
from data_pipeline.text.hashing import HashingText
from data_pipeline.text.transformers import TransformersText, describe_text

SPEC = EncodeSpec(fps=8, buckets=(Bucket(5, 32, 32),))
WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "circle", "moves", "left", "describe", ":", "blue", "square"]


def save_letters(folder: Path) -> None:
    """A byte-level vocabulary, as Qwen2's class makes of whatever it finds."""
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)


def save_words(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("text")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    t5 = transformers.T5Config(vocab_size=len(WORDS), d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3)
    qwen = transformers.Qwen2Config(
        vocab_size=300, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
    )
    transformers.T5EncoderModel(t5).save_pretrained(root / "t5")
    transformers.Qwen2ForCausalLM(qwen).save_pretrained(root / "qwen2")
    save_words(root / "t5")
    save_letters(root / "qwen2")
    return {"t5": root / "t5", "qwen2": root / "qwen2"}


@pytest.mark.parametrize(("name", "width", "length"), [("t5", 24, 6), ("qwen2", 16, 23)])
def test_a_caption_becomes_the_last_hidden_layer_at_its_true_length(folders: dict[str, Path], name: str, width: int, length: int) -> None:
    described = describe_text(folders[name], max_tokens=30)
    text = TransformersText(described)
    assert (described.width, text.width, text.max_tokens) == (width, width, 30)
    vectors = text.encode("a red circle moves left")
    assert vectors.shape == (length, width)
    assert vectors.dtype == np.float32
    kind = transformers.T5EncoderModel if name == "t5" else transformers.Qwen2Model
    model = kind.from_pretrained(folders[name]).eval()
    with torch.inference_mode():
        tokens = transformers.AutoTokenizer.from_pretrained(folders[name])("a red circle moves left")["input_ids"]
        expected = model(input_ids=torch.tensor([tokens])).last_hidden_state[0].numpy()
    assert name != "t5" or tokens == [3, 4, 5, 6, 7, 1]
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["t5", "qwen2"])
def test_the_empty_caption_is_one_token_and_a_long_one_is_cut(folders: dict[str, Path], name: str) -> None:
    text = TransformersText(describe_text(folders[name], max_tokens=8))
    assert text.encode("").shape == (1, text.width)
    assert text.encode("red " * 50).shape == (8, text.width)


def test_a_template_is_put_around_the_caption(folders: dict[str, Path]) -> None:
    plain, framed = (TransformersText(describe_text(folders["qwen2"], 20, template)) for template in ("{caption}", "describe: {caption}"))
    np.testing.assert_array_equal(framed.encode("a square"), plain.encode("describe: a square"))
    assert framed.fingerprint != plain.fingerprint
    with pytest.raises(UserError, match=r"text_template='describe' has no \{caption\}"):
        describe_text(folders["qwen2"], 8, "describe")


def test_a_data_set_finds_its_text_encoder_again(folders: dict[str, Path], tmp_path: Path) -> None:
    described = describe_text(folders["t5"], 8)
    described.save(tmp_path)
    again = load_text(tmp_path, SPEC)
    assert text_fingerprint(tmp_path, SPEC) == again.fingerprint
    assert (again.fingerprint, again.width, again.max_tokens) == (described.fingerprint, 24, 8)
    np.testing.assert_array_equal(again.encode("a red square"), TransformersText(described).encode("a red square"))
    value = json.loads((tmp_path / "text.json").read_text())
    for change, named in (({"weights": "0"}, "other weights"), ({"path": "/gone"}, "no longer in /gone"), ({"kind": "x"}, "kind 'x'")):
        changed = value | change
        if "weights" in change:
            changed["fingerprint"] = "0"
        (tmp_path / "text.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=named):
            load_text(tmp_path, SPEC)


def test_without_a_description_text_is_hashed(tmp_path: Path) -> None:
    assert load_text(tmp_path, SPEC).fingerprint == text_fingerprint(tmp_path, SPEC) == HashingText(64, 24).fingerprint


def test_what_is_no_text_encoder_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"data\.text={tmp_path} is no text encoder"):
        describe_text(tmp_path, 8)
    (tmp_path / "config.json").write_text((folders["qwen2"] / "config.json").read_text())
    with pytest.raises(UserError, match="holds no tokenizer"):
        describe_text(tmp_path, 8)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="holds no weights"):
        describe_text(tmp_path, 8)
    (tmp_path / "model.safetensors").write_bytes(b"words")
    with pytest.raises(UserError, match="does not load as a text encoder"):
        TransformersText(describe_text(tmp_path, 8))


def test_equal_captions_are_encoded_once() -> None:
    asked: list[str] = []

    class Counting(HashingText):
        def encode(self, caption: str) -> np.ndarray:
            asked.append(caption)
            return super().encode(caption)

    text = EachOnce(counting := Counting())
    asked.clear()
    for caption in ("a cat", "a dog", "a cat", ""):
        np.testing.assert_array_equal(text.encode(caption), HashingText().encode(caption))
    assert asked == ["a cat", "a dog", ""]
    assert text.fingerprint == counting.fingerprint
    assert caption_hash("a cat") == caption_hash("a cat") != caption_hash("a cat ")


def test_describing_a_tokenizer_and_a_text_encoder_imports_no_torch(folders: dict[str, Path]) -> None:
    code = "import sys, data_pipeline.tokenizers; from data_pipeline.text.transformers import describe_text\n"
    code += f"describe_text({str(folders['t5'])!r}, 8); sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60, cwd=Path(__file__).parents[3]).returncode == 0
