"""From a folder of videos to batches of latents: sources -> clips -> shards -> loader. Knows nothing of Ray, of the
trainer or of torch (importing it, or encoding with the default tokenizer and text encoder, never loads torch)."""
