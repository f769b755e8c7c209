"""The `dataset` command: a finished data set's next generation, by adding videos, removing some, or giving them new captions;
or a data set's first, of latents that were made elsewhere.
Encodes in this process what is added; what trains on an older generation is not disturbed."""

from __future__ import annotations

from collections.abc import Mapping

from data_pipeline import manifest as manifests
from data_pipeline import storage
from data_pipeline.encode import encode_chunk
from data_pipeline.errors import UserError
from data_pipeline.living import choose, grow, plan_growth, read_records, recaption, remove
from data_pipeline.loader import TOKENIZER_FOLDER, Dataset, open_dataset
from data_pipeline.manifest import Manifest
from data_pipeline.sources import list_sources, read_captions
from data_pipeline.text import load_text
from trainer.commands.import_latents import import_command

HELP = """usage: python trainer/main.py dataset folder=<data set> and one of
  add=<videos> [captions=<table>]
  remove.ids=<id or name>[,...]   remove.caption=<pattern>   remove.licence=<licence>
  captions=<table of file,caption>
  import=<tars of latents> tokenizer=<folder> [text=<folder> text_tokens=<most>]

The data set's next generation, with videos added, removed or captioned anew; or a first one, of latents that were made elsewhere. What
trains on an older generation is not disturbed.

examples:
  python trainer/main.py dataset folder=runs/datasets/videos-0123456789ab add=/path/to/more captions=/path/to/captions.csv
  python trainer/main.py dataset folder=runs/datasets/videos-0123456789ab remove.licence=unknown"""
KEYS = {"folder", "add", "captions", "remove.ids", "remove.caption", "remove.licence", "import", "tokenizer", "text", "text_tokens"}


def command(arguments: list[str], environment: dict[str, str]) -> int:
    """Prints what the new generation holds."""
    given = {key: text for key, _, text in (argument.partition("=") for argument in arguments)}  # not as YAML: ids look like numbers
    unknown = set(given) - KEYS
    if unknown or "folder" not in given or len(given) < 2:
        said = f"{min(unknown)}: unknown key; " if unknown else ""
        raise UserError(f"{said}dataset takes folder=<data set> and what to do with it: see dataset --help")
    if "import" in given:
        return import_command(given)
    dataset = open_dataset(given["folder"])
    if dataset.manifest.pending:
        raise UserError(
            f"{dataset.folder} is not finished ({dataset.manifest.pending} videos to go): let `encode` or `train` finish it first"
        )
    made = _next_generation(dataset, given)
    if not manifests.write(made, dataset.folder):
        raise UserError(f"{dataset.folder} was changed by another process meanwhile: run the command again")
    for bucket in made.buckets:
        before, after = ({split: each.clips(bucket, split) for split in ("train", "held_out")} for each in (dataset.manifest, made))
        print(f"generation {made.generation}  {bucket}: train {before['train']} -> {after['train']}, ", end="")
        print(f"held out {before['held_out']} -> {after['held_out']}")
    return 0


def _next_generation(dataset: Dataset, given: Mapping[str, str]) -> Manifest:
    old, folder = dataset.manifest, dataset.folder
    if "add" in given:
        return _add(dataset, given["add"], given.get("captions"))
    if "captions" in given:
        return recaption(old, folder, read_captions(storage.location(given["captions"])), load_text(folder / TOKENIZER_FOLDER, old.spec))
    ids = filter(None, given.get("remove.ids", "").split(","))
    return remove(old, folder, choose(ids, given.get("remove.caption"), given.get("remove.licence")))


def _add(dataset: Dataset, videos: str, captions: str | None) -> Manifest:
    old, folder = dataset.manifest, dataset.folder
    text = load_text(folder / TOKENIZER_FOLDER, old.spec)
    chunks = plan_growth(list_sources(videos, captions).sources, old, read_records(folder))
    for number, chunk in enumerate(chunks, start=1):
        record = encode_chunk(chunk, old.spec, dataset.tokenizer, text, folder)
        print(f"chunk {number} of {len(chunks)}: {len(chunk.sources)} sources, {record.clips} clips")
        for source in record.sources:
            if source.status != "ok":
                print(f"  {source.name}: {source.status}, {source.reason}")
    return grow(old, read_records(folder))
