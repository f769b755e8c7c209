"""Tiny neural tokenizers with random weights, saved in the formats that real ones come in."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

Builder = Callable[[Path], Path]


def save_cosmos(folder: Path, temporal: int = 8, spatial: int = 8) -> Path:
    return _save(
        folder,
        "AutoencoderKLCosmos",
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=32,
        num_layers=1,
        patch_size=4,
        spatial_compression_ratio=spatial,
        temporal_compression_ratio=temporal,
    )


def save_wan(folder: Path) -> Path:
    return _save(
        folder, "AutoencoderKLWan", base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )


def save_ltx(folder: Path) -> Path:
    return _save(
        folder,
        "AutoencoderKLLTXVideo",
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=2,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )


def save_torchscript(folder: Path, causal: bool = True) -> Path:
    """A causal convolution of stride 4x8x8 to 6 channels whose encoder returns a tuple, as Cosmos' does."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    torch.jit.script(_Encoder(causal)).save(str(folder / "encoder.jit"))
    torch.jit.script(_Decoder()).save(str(folder / "decoder.jit"))
    return folder


def _save(folder: Path, name: str, **config: object) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import diffusers
    torch.manual_seed(0)
    model = getattr(diffusers, name)(**config)
    for parameter in model.parameters():  # biases and norms that start at 0 and 1 would hide a part that is not loaded
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


class _Encoder(torch.nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.group = torch.nn.Conv3d(3, 6, (4, 8, 8), stride=(4, 8, 8))
        self.mix = torch.nn.Conv3d(6, 6, (3, 1, 1))
        self.before = 2 if causal else 1

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.cat([x[:, :, :1].expand(-1, -1, 3, -1, -1), x], dim=2)
        z = self.group(x)
        z = torch.cat([z[:, :, :1]] * self.before + [z] + [z[:, :, -1:]] * (2 - self.before), dim=2)
        return (self.mix(z), z)


class _Decoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spread = torch.nn.ConvTranspose3d(6, 3, (4, 8, 8), stride=(4, 8, 8))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.spread(z))[:, :, 3:]


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of weights by name."""
    root = tmp_path_factory.mktemp("weights")
    return {
        "cosmos-8x8x8": save_cosmos(root / "cosmos-8x8x8"),
        "cosmos-8x16x16": save_cosmos(root / "cosmos-8x16x16", spatial=16),
        "wan": save_wan(root / "wan"),
        "ltx": save_ltx(root / "ltx"),
        "torchscript": save_torchscript(root / "torchscript"),
    }
