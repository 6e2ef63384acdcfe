"""The picture of a learning-rate range test."""

from xml.etree import ElementTree

from conadv.lab.report.charts.lr_range import picture


def test_the_picture_is_svg_with_both_curves() -> None:
    losses = [2.0, 2.0, 1.8, 1.3, 1.0, 1.4, 30.0]
    points = [(10.0 ** (i - 9), loss, loss) for i, loss in enumerate(losses)]
    drawn = picture(points, {"steepest fall": 1e-6, "lowest": None}, "a < b")
    root = ElementTree.fromstring(drawn)
    space = "{http://www.w3.org/2000/svg}"
    curves = [line.attrib["points"].split() for line in root.iter(f"{space}polyline")]
    assert [len(curve) for curve in curves] == [7, 7]
    heights = [float(place.partition(",")[2]) for curve in curves for place in curve]
    assert min(heights) >= 0 and max(heights) <= 400, "the explosion is cut off"
    texts = [element.text or "" for element in root.iter(f"{space}text")]
    assert "a < b" in texts and "steepest fall 1e-06" in texts
