"""Builds the bundled model and data set from text written for this project.

`python -m ollama_tune.assets.build.tickets` writes `assets/data/tickets.jsonl` (a second);
`python -m ollama_tune.assets.build.pretrain` writes `assets/model` (minutes on 2 CPU cores);
`python -m ollama_tune.assets.build.corpus FILE` writes the pre-training conversations, for reading.
"""
