"""Says why the set-up is not going to work, before anything is downloaded.

Standard library only, and no syntax newer than Python 3.6 (or 2.7, for that matter): the point of
this file is to run on the Python that is too old, and to say so.
"""

import os
import sys

MINIMUM_PYTHON = (3, 11)
MINIMUM_DISK_GB = 8.0
MINIMUM_TEMP_GB = 4.0
GB = 1e9


def python_problem(version=None, executable=None, bits=None):
    """What is wrong with this Python, or None."""
    version = tuple(sys.version_info[:3]) if version is None else tuple(version)
    executable = executable or sys.executable
    bits = bits or (64 if sys.maxsize > 2**32 else 32)
    if version[:2] < MINIMUM_PYTHON:
        return (
            "Python {} ({}) is too old: conadv needs Python {}.{} or newer.\n"
            "Install a newer one, for example\n"
            "  Debian 12, Ubuntu 24.04 or newer:  sudo apt install python3 python3-venv\n"
            "  macOS:                             brew install python@3.12\n"
            "and name it if it is not the first python3 on the PATH:  make test PYTHON=python3.12"
        ).format(".".join(str(v) for v in version), executable, *MINIMUM_PYTHON)
    if bits < 64:
        return (
            "{} is a 32-bit Python, and PyTorch is built for 64-bit Python only.\n"
            "Install a 64-bit Python and name it:  make test PYTHON=/path/to/python3"
        ).format(executable)
    return None


def venv_problem(importer=None, version=None):
    """Why this Python cannot make a virtual environment, or None.

    Debian ships ``venv`` with Python but takes ``ensurepip`` out into another package, so that
    both have to be looked at.
    """
    importer = importer or __import__
    version = version or sys.version_info
    for name in ("venv", "ensurepip"):
        try:
            importer(name)
        except ImportError:
            return (
                "This Python ({}) has no {} module, so it cannot make a virtual environment.\n"
                "Debian and Ubuntu:  sudo apt install python3-venv"
                "   (or python{}.{}-venv for this very version)\n"
                "Elsewhere: install Python from your system's packages or from python.org."
            ).format(sys.executable, name, version[0], version[1])
    return None


def existing_parent(path):
    """The nearest folder at or above path that exists."""
    path = os.path.abspath(path)
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def disk_problem(venv, usage=None, temp=None, minimum_gb=None, same_device=None):
    """Why the disk is too small, or None. A finished environment needs nothing more."""
    import shutil
    import tempfile

    usage = usage or shutil.disk_usage
    temp = temp or tempfile.gettempdir()
    if minimum_gb is None:
        minimum_gb = float(os.environ.get("CONADV_MIN_DISK_GB", MINIMUM_DISK_GB))
    if is_complete(venv):
        return None
    place = existing_parent(venv)
    free = usage(place).free / GB
    if free < minimum_gb:
        return (
            "Only {:.1f} GB are free in {}, and the environment with PyTorch needs {:.0f} GB.\n"
            "Free some space, put the environment elsewhere (make test VENV=/big/disk/venv),\n"
            "or, with a smaller build of PyTorch (one without CUDA takes about 2 GB), lower the\n"
            "limit:  CONADV_MIN_DISK_GB=2 make test"
        ).format(free, place, minimum_gb)
    if same_device is None:
        same_device = os.stat(place).st_dev == os.stat(temp).st_dev
    needed = min(MINIMUM_TEMP_GB, minimum_gb)
    if not same_device and usage(temp).free / GB < needed:
        return (
            "Only {:.1f} GB are free in {}, where pip unpacks what it downloads; "
            "it needs {:.0f} GB.\n"
            "Name a folder on a larger disk:  TMPDIR=$HOME/tmp make test   (it has to exist)"
        ).format(usage(temp).free / GB, temp, needed)
    return None


def is_complete(venv):
    """Whether an earlier installation into this environment came to its end."""
    return os.path.isdir(venv) and any(n.startswith(".installed-") for n in os.listdir(venv))


def problems(venv):
    """Everything that stands in the way, as texts; empty when the set-up can go on."""
    too_old = python_problem()
    if too_old:
        return [too_old]  # nothing further can be trusted to run here
    return [text for text in (venv_problem(), disk_problem(venv)) if text]


def main(arguments):
    venv = arguments[0] if arguments else ".venv"
    found = problems(venv)
    for text in found:
        sys.stderr.write("\nconadv cannot be set up here: " + text + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
