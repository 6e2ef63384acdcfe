"""Makes the virtual environment and installs conadv into it; `make` calls this.

    python3 tools/install.py --venv .venv --extras dev

It checks first (tools/preflight.py), so that a set-up that cannot work ends before a download,
and turns pip's failures into one sentence on what to do. PIP_FLAGS is handed on to pip.
Written for old Python too, because it has to reach the check.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import preflight

MARKER = ".made-by-conadv"
AGAIN = "Then run the same command again; it goes on from here."

# What pip prints -> what to do. The first that matches wins, so the causes come before the
# sentences with which pip sums them up.
CAUSES = (
    (
        ("No space left on device", "Errno 28", "Disk quota exceeded"),
        "the disk (or the folder for temporary files) is full. Free some space, or name a folder "
        "on a larger disk with TMPDIR=/path.",
    ),
    (
        ("CERTIFICATE_VERIFY_FAILED", "SSLError"),
        "the package index could not be reached over a trusted connection. Behind a company "
        "proxy, name its certificate with PIP_CERT=/path/to/ca.pem.",
    ),
    (
        (
            "NewConnectionError",
            "NameResolutionError",
            "Temporary failure in name resolution",
            "ConnectTimeout",
            "ReadTimeout",
            "Read timed out",
            "Network is unreachable",
            "Connection refused",
            "Connection reset",
            "ProxyError",
            "Failed to establish a new connection",
        ),
        "the package index could not be reached: no network, or a proxy in between. Check the "
        "connection, set HTTPS_PROXY, or name a mirror with PIP_INDEX_URL=https://...",
    ),
    (
        ("(from versions: none)",),
        "pip found no release at all of a package (the line above that starts with ERROR names "
        "it): the package index could not be reached, or the one that PIP_INDEX_URL or pip's "
        "settings name does not carry it.",
    ),
    (
        ("No matching distribution found", "not a supported wheel on this platform"),
        "a package has no build for this Python on this system (its name is in the line above "
        "that starts with ERROR). PyTorch has builds for 64-bit Linux with glibc, macOS and "
        "Windows, and may lag behind the newest Python: try PYTHON=python3.12.",
    ),
    (
        ("ResolutionImpossible", "conflicting dependencies"),
        "the packages' requirements contradict each other; remove the environment (make "
        "distclean) to rule out leftovers, and unset PIP_CONSTRAINT if you set it.",
    ),
)


def diagnose(output, code):
    """One message on why pip failed, from what it printed."""
    for signs, advice in CAUSES:
        if any(sign in output for sign in signs):
            return "Installation failed: " + advice + "\n" + AGAIN
    return "Installation failed: pip ended with exit code {}; its own words are above.\n{}".format(
        code, AGAIN
    )


def stream(command, environment):
    """Runs a command, shows its output as it comes, and returns (exit code, output)."""
    import subprocess

    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        universal_newlines=True,
        errors="replace",
    )
    lines = []
    for line in process.stdout:
        sys.stdout.write(line)
        sys.stdout.flush()
        lines.append(line)
    return process.wait(), "".join(lines)


def is_usable(python):
    """Whether the environment's Python runs, is new enough and has pip."""
    import subprocess

    check = "import pip, sys; sys.exit(sys.version_info < {!r})".format(preflight.MINIMUM_PYTHON)
    try:
        return subprocess.call([python, "-c", check], stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False


def make_room(venv):
    """Readies a folder for a new environment; returns why not, if it is not ours to remove."""
    import shutil

    if os.path.isdir(venv) and os.listdir(venv):
        if not os.path.exists(os.path.join(venv, MARKER)):
            return (
                "{} exists, is no environment of Python {}.{} or newer that works, and was not "
                "made by this script.\nRemove it yourself, or name another place:  "
                "make test VENV=.venv-conadv"
            ).format(venv, *preflight.MINIMUM_PYTHON)
        shutil.rmtree(venv)  # ours, and broken: an interrupted start, or its Python is gone
    if not os.path.isdir(venv):
        os.makedirs(venv)
    open(os.path.join(venv, MARKER), "w").close()
    return None


def install(venv, extras, root):
    """Creates or completes the environment; returns an exit code."""
    import shlex
    import subprocess

    found = preflight.problems(venv)
    if found:
        for text in found:
            sys.stderr.write("\nconadv cannot be set up here: " + text + "\n")
        return 1
    python = os.path.join(venv, "bin", "python")
    if not is_usable(python):
        refused = make_room(venv)
        if refused:
            sys.stderr.write("\nconadv cannot be set up here: " + refused + "\n")
            return 1
        print("Making the virtual environment {} with {}".format(venv, sys.executable))
        if subprocess.call([sys.executable, "-m", "venv", venv]) != 0:
            sys.stderr.write("\nMaking the virtual environment failed; see the lines above.\n")
            return 1
    print("Installing conadv[{}] into {} (PyTorch is large: some minutes)".format(extras, venv))
    sys.stdout.flush()
    command = [python, "-m", "pip", "install", "--disable-pip-version-check"]
    command += shlex.split(os.environ.get("PIP_FLAGS", ""))
    command += ["--editable", "{}[{}]".format(root, extras)]
    code, output = stream(command, dict(os.environ, PYTHONUNBUFFERED="1"))
    if code != 0:
        sys.stderr.write("\n" + diagnose(output, code) + "\n")
        return 1
    checker = os.path.join(os.path.dirname(os.path.abspath(__file__)), "check_install.py")
    return subprocess.call([python, checker])


def main(arguments):
    import argparse

    parser = argparse.ArgumentParser(description="Install conadv into an environment of its own.")
    parser.add_argument("--venv", default=".venv", help="the environment's folder")
    parser.add_argument("--extras", default="train,report", help="the package's extras")
    options = parser.parse_args(arguments)
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    code = install(options.venv, options.extras, root)
    if code == 0:
        # The developer's environment holds everything that running needs.
        for stamp in {"dev": ("dev", "run")}.get(options.extras, ("run",)):
            open(os.path.join(options.venv, ".installed-" + stamp), "w").close()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
