"""docs/reference.md names everything public, with its signature."""

import inspect
import re
from pathlib import Path

import pytest

from conadv import weights

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "reference.md").read_text()


@pytest.mark.parametrize("name", weights.__all__)
def test_every_public_name_is_there_with_its_signature(name: str) -> None:
    signature = inspect.signature(getattr(weights, name))
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    written = str(signature.replace(parameters=bare, return_annotation=signature.empty))
    assert f"`{name}{written}`".replace("'", '"') in PAGE


@pytest.mark.parametrize("kind", [weights.WeightAdversary, weights.WeightSchedule])
def test_every_public_member_is_there(kind: type) -> None:
    members = {n for k in kind.__mro__[:-1] for n in vars(k) if not n.startswith("_")}
    if kind is weights.WeightAdversary:
        made = inspect.getsource(kind.__init__)
        members |= set(re.findall(r"self\.([a-z]\w*)\b(?:: [^=]+)? = ", made))
    section = PAGE.partition(f"### {kind.__name__}\n")[2].partition("\n#")[0]
    missing = {name for name in members if not re.search(rf"`{name}\b", section)}
    assert len(members) > 10 and missing == set()
