"""Classes against landmarks that every user of ImageNet knows."""

import importlib.util

import pytest

from conadv.errors import DataError
from conadv.trainer.evaluation.imagenet import classes


def test_landmarks() -> None:
    wnids = classes.wnids()
    assert len(wnids) == 1000
    assert list(wnids) == sorted(set(wnids))
    assert (wnids[0], wnids[999]) == ("n01440764", "n15075141")


def test_subsets() -> None:
    everything = classes.wnids()
    a = [everything.index(wnid) for wnid in classes.wnids_of_a()]
    r = [everything.index(wnid) for wnid in classes.wnids_of_r()]
    # The first and last ones of the authors' own index lists.
    assert len(a) == 200 and a[:4] == [6, 11, 13, 15] and a[-3:] == [986, 987, 988]
    assert len(r) == 200 and r[:4] == [1, 2, 4, 6] and r[-1] == 988
    assert a != r


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classes, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"timm is not installed.*Type: pip install .*\[train\]"):
        classes.wnids.__wrapped__()


def test_with_an_old_timm() -> None:
    assert importlib.util.find_spec("timm") is not None
    with pytest.raises(DataError, match=r"does not ship nothing\.txt.*--upgrade"):
        classes.shipped("nothing.txt")


def test_a_list_that_is_not_sorted_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    backwards = classes.wnids()[::-1]
    monkeypatch.setattr(classes, "_lines", lambda name: backwards)
    with pytest.raises(DataError, match="sorted order"):
        classes.wnids.__wrapped__()
    with pytest.raises(DataError, match="holds 1000 lines that should be 200"):
        classes._subset.__wrapped__("imagenet_a_synsets.txt")
