"""VideoMAR in plain PyTorch: the model, its objective and its sampler. Knows no process group, no cluster and no files but `export`.

Shape letters used throughout the project: B batch, T latent frames, S tokens per latent frame (H x W), L tokens of a sequence,
D width, N heads, C latent channels, K text tokens, E text width, M supervised (masked) tokens of a batch, R head repeats.
"""
