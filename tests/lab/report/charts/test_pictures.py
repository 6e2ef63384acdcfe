"""Pictures: a PNG that another library reads back, and perturbations in the right units."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conadv.lab.report.charts.pictures import (
    Pictures,
    encode_png,
    read_pictures,
    strongest,
    triples,
)
from lab.report.conftest import write_pictures


def pixels(url: str) -> np.ndarray:
    kind, data = url.split(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


@pytest.mark.parametrize("channels", [1, 3])
def test_png_is_read_back_by_another_library(channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    back = np.asarray(Image.open(io.BytesIO(encode_png(image))))
    assert np.array_equal(back.reshape(image.shape), image)


def save(path: Path, **changes: object) -> Path:
    write_pictures(path)
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    kept = {key: value for key, value in (arrays | changes).items() if value is not None}
    np.savez(path, **kept)
    return path


@pytest.mark.parametrize("form", ["grey levels", "pixel range", "missing", "wrong shape", "nan"])
def test_perturbation_is_in_grey_levels(tmp_path: Path, form: str) -> None:
    change = np.where(np.arange(8) % 2, 4, -4).astype(np.int16)[None, None, :, None]
    given = {
        "grey levels": np.broadcast_to(change, (3, 8, 8, 1)),
        "pixel range": np.broadcast_to(change / np.float32(255), (3, 8, 8, 1)),
        "missing": None,
        "wrong shape": np.zeros((2, 2)),
        "nan": np.full((3, 8, 8, 1), np.nan),
    }[form]
    pictures = read_pictures(save(tmp_path / "p.npz", perturbation=given))
    np.testing.assert_allclose(pictures.perturbation[0, 0, :, 0], change.ravel(), rtol=1e-6)
    assert strongest(pictures) == pytest.approx(4)


def test_the_strongest_change_is_shown_full_scale_around_mid_grey(tmp_path: Path) -> None:
    pictures = read_pictures(save(tmp_path / "p.npz"))
    shown = pixels(triples(pictures)[0].perturbation)
    assert shown[0].tolist() == [1, 255] * 4
    np.testing.assert_array_equal(pixels(triples(pictures)[1].clean), pictures.clean[1, ..., 0])


def test_no_perturbation_at_all_is_mid_grey() -> None:
    image = np.full((1, 2, 2, 3), 9, np.uint8)
    pictures = Pictures(image, np.zeros(image.shape, np.float32), image, ("",))
    assert (pixels(triples(pictures)[0].perturbation) == 128).all()


def test_names_of_classes_are_used_where_they_are(tmp_path: Path) -> None:
    path = save(tmp_path / "p.npz", labels=np.array([1, 0, 7]), classes=np.array(["bag", "shoe"]))
    assert read_pictures(path).labels == ("shoe", "bag", "class 7")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clean": None}, "lacks the arrays"),
        ({"clean": np.zeros((3, 8, 8, 1), np.float32)}, "not uint8"),
        ({"clean": np.zeros((3, 9, 8, 1), np.uint8)}, "differ in shape"),
        ({"clean": np.zeros((3, 8, 8, 2), np.uint8)}, "have the shape"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_pictures(save(tmp_path / "p.npz", **changes))


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "p.npz")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="damaged"):
        read_pictures(path)
