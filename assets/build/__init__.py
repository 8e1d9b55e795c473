"""Builds the bundled model and data set from text written for this project.

`python -m ollama_tune.assets.build.tickets` writes `assets/data/tickets.jsonl` (a second);
`python -m ollama_tune.assets.build.pretrain` writes `assets/model` (minutes on 2 CPU cores);
`python -m ollama_tune.assets.build.corpus FILE` writes 1,000 of its conversations, for reading.

The model learns to chat about a café, to read an order back, and to write one down when asked for a list or
for short notes with signs of the guest's choice. The kitchen's ticket is never among them.
"""
