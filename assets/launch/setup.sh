set -eu
venv=$HOME/ollama-tune/venv
if command -v uv > /dev/null; then
  uv venv --quiet --allow-existing "$venv"
  uv pip install --quiet --python "$venv/bin/python" @REQUIREMENT@
else
  python3 -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet @REQUIREMENT@
fi
