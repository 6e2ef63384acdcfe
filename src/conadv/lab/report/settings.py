"""What the runs were made with: settings that differ, and the machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conadv.lab.report.runs import Run

_SAID_ELSEWHERE = ("name", "description", "source", "published", "verified", "method.label")


@dataclass(frozen=True)
class Facts:
    """A named group of facts about the machine or the software of a run."""

    title: str
    items: tuple[tuple[str, str], ...]


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted names and plain text of every value, in the order of the file."""
    flat: dict[str, str] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = plain(value)
    return flat


def plain(value: Any) -> str:
    """A value as a person writes it in a recipe."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(plain, value)) + "]"
    return str(value)


def differing(runs: Sequence[Run]) -> list[tuple[tuple[str, str], ...]]:
    """Find the recipe settings in which runs differ (all names alike for every run).

    A name that a recipe lacks is shown as ``none``. Names and descriptions of recipes do not count.
    """
    flat = [flatten(run.recipe) for run in runs]
    names = dict.fromkeys(name for settings in flat for name in settings)
    wanted = [
        name
        for name in names
        if name not in _SAID_ELSEWHERE
        and len({settings.get(name, "none") for settings in flat if settings}) > 1
    ]
    return [
        tuple((name, settings.get(name, "none")) for name in wanted) if settings else ()
        for settings in flat
    ]


def facts(run: Run) -> list[Facts]:
    """``environment.json`` as titled groups: nested objects by their key, the rest under *Run*."""
    general, groups = [], []
    for key, value in run.environment.items():
        if key == "command" and run.command:
            continue  # that of a study's worker, which remakes nothing
        if isinstance(value, Mapping):
            items = tuple(
                (name, _readable(name, text))
                for name, text in flatten(value).items()
                if text != "none"
            )
            groups.append(Facts(str(key), items))
        elif isinstance(value, list):
            general.append((str(key), f"{len(value)} time(s)" if value else "no"))
        elif value is not None:
            general.append((str(key), _readable(str(key), plain(value))))
    return [group for group in (Facts("run", tuple(general)), *groups) if group.items]


def machine(run: Run) -> str:
    """One line about the machine: processor or GPU, cores, and the version of torch."""
    hardware = run.environment.get("hardware")
    versions = run.environment.get("versions")
    hardware = hardware if isinstance(hardware, Mapping) else {}
    versions = versions if isinstance(versions, Mapping) else {}
    device = hardware.get("device_name")
    parts = [str(hardware["processor"])] if hardware.get("processor") else []
    if hardware.get("cores"):
        parts.append(f"{hardware['cores']} cores")
    if hardware.get("threads"):
        parts.append(f"{hardware['threads']} threads")
    if device and device != "cpu":
        parts.insert(0, str(device))
    if versions.get("torch"):
        parts.append(f"torch {versions['torch']}")
    return ", ".join(parts)


def _readable(name: str, text: str) -> str:
    if name.rpartition(".")[2] == "memory" and text.isdecimal():
        return f"{int(text) / 2**30:.1f} GiB"
    return text
