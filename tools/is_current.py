"""Exit code 0 when the Python that runs this finds the conadv of this folder."""

import importlib.util
import os
import sys

spec = importlib.util.find_spec("conadv")
here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
places = list(spec.submodule_search_locations or ()) if spec else []
sys.exit(os.path.realpath(os.path.join(here, "src", "conadv")) not in map(os.path.realpath, places))
