"""The command `probe`: what this machine is, what is free on it, and who holds the rest."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from ollama_tune.tui.shell import out

if TYPE_CHECKING:
    from ollama_tune.core.machine.unload import Unloaded
    from ollama_tune.core.machine.values import Gpu, Machine, OllamaStatus
    from ollama_tune.core.plan.values import Choice

LABEL = 9


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--unload", is_flag=True, help="Let the local Ollama unload its models first.")
def probe(as_json: bool, unload: bool) -> None:
    """Say what this machine is, what is free on it now, and who holds the rest.

    The keys of --json stay as they are; new ones may come. Sizes are bytes, null is what is not known.

    \b
    device, reason     `cuda` or `cpu`, and why not the GPU
    driver, cuda       versions of the NVIDIA driver and of the CUDA it runs
    gpus               index, uuid, name, total_bytes, free_bytes, compute_capability,
                       mig, unified, virtual, display, utilization_percent,
                       temperature_celsius, power_watts, power_limit_watts,
                       processes_known, processes: [{pid, name, bytes}]
    other_gpus         maker, name, total_bytes, free_bytes, reason
    notes, holders     sentences
    cpu                name, cores
    memory             total_bytes, available_bytes
    system, inside     the system, and `container` or `WSL2` where it runs in one
    disk               path, total_bytes, free_bytes
    ollama             url, version, reason, local, loaded: [{name, bytes, gpu_bytes}]
    base               id and reason of the largest base model for this machine
    unloaded           gone, left, gained_bytes; null without --unload

    The exit status is 0, 1 when Ollama kept a model, and 2 for --unload with the Ollama of another host.

    \b
    Examples:
      ollama-tune probe
      ollama-tune probe --json
      ollama-tune probe --unload
    """
    from ollama_tune.core.machine.probe import probe_machine
    from ollama_tune.core.machine.processes import holders, ram_holders
    from ollama_tune.core.machine.unload import unload_loaded
    from ollama_tune.core.plan.bases import recommend_base

    unloaded = unload_loaded() if unload else None
    machine = probe_machine()
    base = recommend_base(machine)
    held = holders(machine) + (ram_holders() if machine.device == "cpu" else [])
    if as_json:
        out(json.dumps(probe_json(machine, held, base, unloaded), indent=2))
    else:
        for line in probe_lines(machine, held, base, unloaded):
            out(line)
    if unloaded is not None and not unloaded.complete:
        sys.exit(1)


def probe_lines(
    machine: Machine, held: list[str], base: Choice, unloaded: Unloaded | None = None
) -> list[str]:
    """The machine in lines of a label and words; `held` are sentences about who holds memory."""
    from ollama_tune.core.text import human_bytes, visible

    host, disk, report = machine.host, machine.disk, machine.gpu
    inside = f", in {'a container' if host.inside == 'container' else host.inside}" if host.inside else ""
    rows = [row for gpu in report.gpus for row in _gpu_rows(gpu)]
    if report.gpus and report.driver:
        cuda = f", CUDA {report.cuda[0]}.{report.cuda[1]}" if report.cuda else ""
        rows.append(("driver", f"{visible(report.driver)}{cuda}"))
    rows += [("" if report.gpus else "GPU", visible(report.reason))] if report.reason else []
    rows += [("", visible(text)) for text in (*report.notes, *(gpu.why for gpu in report.others))]
    rows += [
        ("CPU", f"{visible(host.cpu)}, {host.cores} core" + ("" if host.cores == 1 else "s")),
        ("memory", f"{human_bytes(host.ram_available)} free of {human_bytes(host.ram_total)}"),
        ("system", f"{visible(host.system)}{inside}"),
        ("disk", f"{human_bytes(disk.free)} free of {human_bytes(disk.total)} at {visible(disk.path)}"),
        ("Ollama", _ollama_words(machine.ollama)),
        *(("held", line) for line in held),
        ("trains", f"on the {'GPU' if machine.device == 'cuda' else 'CPU'}"),
        ("base", f"{base.value.id}: {base.reason}"),
    ]
    rows += [("unloaded", _unloaded_words(unloaded))] if unloaded else []
    labels = ["" if rows[i][0] == rows[i - 1][0] and i else rows[i][0] for i in range(len(rows))]
    return [f"{label:<{LABEL}}{words}" for label, (_, words) in zip(labels, rows, strict=True)]


def _gpu_rows(gpu: Gpu) -> list[tuple[str, str]]:
    from ollama_tune.core.text import human_bytes, visible

    capability = gpu.compute_capability
    kinds = [
        "a MIG instance" if gpu.mig else "",
        "a part of a virtual GPU" if gpu.virtual else "",
        "memory shared with the computer" if gpu.unified else "",
        "drives a display" if gpu.display else "",
        f"compute capability {capability[0]}.{capability[1]}" if capability else "",
    ]
    sensors = [
        f"{gpu.utilization} % busy" if gpu.utilization is not None else "",
        f"{gpu.temperature} °C" if gpu.temperature is not None else "",
        f"{gpu.power:.0f} W now" if gpu.power is not None else "",
        f"at most {gpu.power_limit:.0f} W" if gpu.power_limit is not None else "",
    ]
    room = f"{human_bytes(gpu.free)} free of {human_bytes(gpu.total)}"
    rows = [
        (f"GPU {gpu.index}", f"{room}, {visible(gpu.name)}"),
        ("", ", ".join(filter(None, kinds))),
        ("", ", ".join(filter(None, sensors))),
    ]
    return [row for row in rows if row[1]]


def _ollama_words(ollama: OllamaStatus) -> str:
    from ollama_tune.core.text import visible

    if not ollama.reachable:
        return visible(ollama.reason)
    where = "" if ollama.local else ", another host"
    return f"{visible(str(ollama.version))} at {visible(ollama.url)}{where}"


def _unloaded_words(unloaded: Unloaded) -> str:
    from ollama_tune.core.text import human_bytes

    if not unloaded.gone and unloaded.complete:
        return "nothing: Ollama held no model"
    gone = ", ".join(model.name for model in unloaded.gone) or "nothing"
    gained = f" ({human_bytes(unloaded.gained)} of GPU memory more)" if unloaded.gained > 0 else ""
    left = ", ".join(model.name for model in unloaded.left)
    return f"{gone}{gained}" + (f"; Ollama still holds {left}" if left else "")


def probe_json(
    machine: Machine, held: list[str], base: Choice, unloaded: Unloaded | None = None
) -> dict[str, Any]:
    """The machine for programs; the keys are those that `--help` names."""
    report, host, disk, ollama = machine.gpu, machine.host, machine.disk, machine.ollama
    return {
        "device": machine.device,
        "reason": report.reason,
        "driver": report.driver,
        "cuda": ".".join(map(str, report.cuda)) if report.cuda else None,
        "gpus": [_gpu_json(gpu) for gpu in report.gpus],
        "other_gpus": [
            {
                "maker": gpu.maker,
                "name": gpu.name,
                "total_bytes": gpu.total,
                "free_bytes": gpu.free,
                "reason": gpu.why,
            }
            for gpu in report.others
        ],
        "notes": list(report.notes),
        "holders": held,
        "cpu": {"name": host.cpu, "cores": host.cores},
        "memory": {"total_bytes": host.ram_total, "available_bytes": host.ram_available},
        "system": host.system,
        "inside": host.inside or None,
        "disk": {"path": disk.path, "total_bytes": disk.total, "free_bytes": disk.free},
        "ollama": {
            "url": ollama.url,
            "version": ollama.version,
            "reason": ollama.reason,
            "local": ollama.local,
            "loaded": [{"name": m.name, "bytes": m.size, "gpu_bytes": m.vram} for m in ollama.loaded],
        },
        "base": {"id": base.value.id, "reason": base.reason},
        "unloaded": _unloaded_json(unloaded),
    }


def _gpu_json(gpu: Gpu) -> dict[str, Any]:
    return {
        "index": gpu.index,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "total_bytes": gpu.total,
        "free_bytes": gpu.free,
        "compute_capability": ".".join(map(str, gpu.compute_capability)) if gpu.compute_capability else None,
        "mig": gpu.mig,
        "unified": gpu.unified,
        "virtual": gpu.virtual,
        "display": gpu.display,
        "utilization_percent": gpu.utilization,
        "temperature_celsius": gpu.temperature,
        "power_watts": gpu.power,
        "power_limit_watts": gpu.power_limit,
        "processes_known": gpu.processes_known,
        "processes": [{"pid": p.pid, "name": p.name or None, "bytes": p.memory} for p in gpu.processes],
    }


def _unloaded_json(unloaded: Unloaded | None) -> dict[str, Any] | None:
    if unloaded is None:
        return None
    return {
        "gone": [model.name for model in unloaded.gone],
        "left": [model.name for model in unloaded.left],
        "gained_bytes": unloaded.gained,
    }
