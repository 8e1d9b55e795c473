"""The blueprint under the fast path's name; it lives with the models, because the plan reads it too."""

from __future__ import annotations

from ollama_tune.core.models.blueprint import Activation as Activation
from ollama_tune.core.models.blueprint import Blueprint as Blueprint
from ollama_tune.core.models.blueprint import HeadNorm as HeadNorm
from ollama_tune.core.models.blueprint import LayerKind as LayerKind
from ollama_tune.core.models.blueprint import Linear as Linear
from ollama_tune.core.models.blueprint import Norms as Norms
from ollama_tune.core.models.blueprint import obstacle as obstacle
from ollama_tune.core.models.blueprint import read_blueprint as read_blueprint
