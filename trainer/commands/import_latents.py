"""`dataset folder=<new data set> import=<tars>`: the latents that another program made, with the tokenizer that it used, as a data
set to train on (data.videos=<new data set>). The `dataset` command calls it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from data_pipeline import manifest as manifests
from data_pipeline import storage
from data_pipeline.errors import UserError
from data_pipeline.imports import import_latents
from data_pipeline.loader import TOKENIZER_FILE, TOKENIZER_FOLDER
from data_pipeline.text import EachOnce, TextEncoder
from data_pipeline.text.hashing import HashingText
from data_pipeline.text.transformers import TransformersText, describe_text
from data_pipeline.tokenizers import VideoTokenizer, load_tokenizer, open_tokenizer
from data_pipeline.tokenizers.description import describe

TEXT_TOKENS, TEXT_WIDTH = 24, 64  # as a recipe has them that says nothing


def import_command(given: Mapping[str, str]) -> int:
    """Prints what the data set holds. Raises UserError when there is one in the folder already, and as import_latents does."""
    folder = storage.location(given["folder"])
    if storage.size(folder / manifests.FILE) is not None:
        raise UserError(f"{folder} is a data set already: choose a new folder for the imported one")
    tokens = given.get("text_tokens", str(TEXT_TOKENS))
    if "tokenizer" not in given or not tokens.isdecimal():
        raise UserError("import needs tokenizer=<folder>, of the one that made the latents, and a whole number as text_tokens")
    tokenizer = tokenizer_in(Path(given["tokenizer"]))
    with TemporaryDirectory(prefix="videomar-codecs-") as made_with:
        text = text_encoder(given.get("text", "hashing"), int(tokens), Path(made_with))
        tokenizer.save(Path(made_with))
        made = import_latents(storage.location(given["import"]), folder, tokenizer, text)
        storage.copy_tree(Path(made_with), folder / TOKENIZER_FOLDER, last=TOKENIZER_FILE)
    if not manifests.write(made, folder):
        raise UserError(f"{folder} holds what is left of another data set: choose a new folder for the imported one")
    for bucket in made.buckets:
        print(f"{folder}  {bucket}: train {made.clips(bucket, 'train')}, held out {made.clips(bucket, 'held_out')}")
    return 0


def tokenizer_in(folder: Path) -> VideoTokenizer:
    """Of a data set's tokenizer folder, or of a folder of weights."""
    return load_tokenizer(folder) if (folder / TOKENIZER_FILE).is_file() else open_tokenizer(describe(folder, 16, (4, 8, 8)))


def text_encoder(words: str, tokens: int, folder: Path) -> TextEncoder:
    """Hashing, or the model in a folder of weights, which is described in `folder`."""
    if words == "hashing":
        return HashingText(TEXT_WIDTH, tokens)
    described = describe_text(words, tokens)
    described.save(folder)
    return EachOnce(TransformersText(described))
