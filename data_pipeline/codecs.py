"""Which tokenizer and text encoder a recipe names, known without loading them: what they make of a clip and a caption, and
what is written into the data set so that encoders and the sampler find them again. The command line calls it."""

from dataclasses import dataclass
from pathlib import Path

from data_pipeline.buckets import Stride
from data_pipeline.errors import UserError
from data_pipeline.storage import Location
from data_pipeline.text.transformers import PLAIN, TextDescription, describe_text
from data_pipeline.tokenizers.description import Description, describe
from data_pipeline.tokenizers.linear import LinearTokenizer

SHIPPED = Path(__file__).parent / "tokenizers" / "shipped"


@dataclass(frozen=True)
class Codecs:
    """`tokenizer` is None when it is to be fitted on the data; `text` is None for hashing."""

    tokenizer: Description | LinearTokenizer | None
    text: TextDescription | None
    channels: int
    stride: Stride
    text_width: int

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """Of what does not come out of the data and the spec themselves."""
        return tuple(part.fingerprint for part in (self.tokenizer, self.text) if part is not None)

    def save_text(self, folder: Location) -> None:
        """Before the tokenizer, whose description marks a folder as whole."""
        if self.text is not None:
            self.text.save(folder)


def choose_codecs(
    tokenizer: str,
    text: str,
    *,
    channels: int,
    stride: Stride,
    text_width: int,
    text_tokens: int,
    template: str = PLAIN,
    dtype: str = "float32",
    pass_frames: int | None = None,
) -> Codecs:
    """`tokenizer` is linear, shipped or a folder of weights; `text` is hashing or a folder of weights. Raises UserError."""
    words = None if text == "hashing" else describe_text(text, text_tokens, template, dtype)
    width = text_width if words is None else words.width
    if tokenizer == "linear":
        return Codecs(None, words, channels, stride, width)
    if tokenizer == "shipped":
        shipped = LinearTokenizer.load(SHIPPED)
        if (channels, stride) != (shipped.channels, shipped.stride):
            raise UserError(
                f"data.tokenizer=shipped has {shipped.channels} channels and stride {list(shipped.stride)}, "
                f"not {channels} and {list(stride)}: leave data.latent_channels and data.stride at these, or choose linear"
            )
        return Codecs(shipped, words, channels, stride, width)
    described = describe(tokenizer, channels, stride, dtype, pass_frames)
    return Codecs(described, words, described.channels, described.stride, width)
