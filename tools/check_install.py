"""Sees whether torch and torchvision fit together; run by the Python of the environment."""

import sys

SAME_PLACE = """\
torch and torchvision do not fit together: {error}

This is what a torch without CUDA next to a torchvision with CUDA says (or the other way round, or
two releases that do not belong together). Install both from the same place, in one command:
  {python} -m pip install --force-reinstall torch torchvision
or, if you chose another index for torch, from there:
  {python} -m pip install --force-reinstall --index-url THAT_INDEX torch torchvision
"""

SIGNS = ("torchvision::nms", "undefined symbol", "Couldn't load custom C++ ops", "_C.so")


def explain(error, python=sys.executable):
    """A message for an error that importing torch or torchvision raised."""
    text = "{}: {}".format(type(error).__name__, error)
    if any(sign in text for sign in SIGNS):
        return SAME_PLACE.format(error=error, python=python)
    return "The installed packages do not import: {}\nRun `make distclean`, then again.".format(
        text
    )


def main():
    try:
        import torch
        import torchvision
    except Exception as error:  # whatever it is, it has to be explained
        sys.stderr.write("\n" + explain(error) + "\n")
        return 1
    print("torch {} and torchvision {} work".format(torch.__version__, torchvision.__version__))
    return 0


if __name__ == "__main__":
    sys.exit(main())
