"""How numbers are written: the same everywhere a person reads them."""

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
MISSING = "\N{EN DASH}"
NARROW = "\N{NARROW NO-BREAK SPACE}"


def percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction in [0, 1] as per cent: 0.8312 gives ``83.1 %``."""
    return MISSING if fraction is None else f"{100 * fraction:.{digits}f}{NARROW}%"


def points(difference: float | None) -> str:
    """A difference of two fractions as signed percentage points: 0.012 gives ``+1.2``."""
    if difference is None:
        return MISSING
    text = f"{100 * difference:+.1f}"
    if float(text) == 0:
        return "0.0"
    return text.replace("-", MINUS)


def ratio(value: float | None) -> str:
    """A ratio: 2.004 gives ``2.00×``."""
    return MISSING if value is None else f"{value:.2f}{TIMES}"


def seconds(value: float | None) -> str:
    """A duration in seconds or milliseconds, three significant figures."""
    if value is None:
        return MISSING
    if value < 1:
        return f"{1000 * value:.3g}{NARROW}ms"
    return f"{value:.3g}{NARROW}s" if value < 100 else f"{value:,.0f}{NARROW}s"


def count(value: float | None) -> str:
    """A whole number with thousands separators."""
    return MISSING if value is None else f"{value:,.0f}"


def amount(value: float | None) -> str:
    """A large number in k or M, three significant figures: 271600 gives ``272 k``."""
    if value is None:
        return MISSING
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{NARROW}{unit}"
    return f"{value:.3g}"


def figures(value: float | None) -> str:
    """A number of any size, three significant figures: 0.1234 gives ``0.123``."""
    if value is None:
        return MISSING
    return f"{value:,.0f}" if 999.5 <= abs(value) < 1e6 else f"{value:.3g}"


def joined(items: list[str]) -> str:
    """A list in a sentence: ``a``, ``a and b``, ``a, b and c``; empty for none."""
    if not items:
        return ""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
