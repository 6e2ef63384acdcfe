"""The compiled steps: same results, one compilation, and what happens without a compiler."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conadv.optim import LAMB, LARS
from conadv.optim import fused as _fused
from support import optimizers as support

SHAPES = ((130, 130), (7,), (64, 33, 3, 3), (16, 1024), ())
KINDS: list[tuple[type[LARS] | type[LAMB], dict[str, Any]]] = [
    (LARS, {"lr": 0.5, "weight_decay": 0.1}),
    (LAMB, {"lr": 0.01}),
]
kinds = pytest.mark.parametrize(("kind", "options"), KINDS, ids=["lars", "lamb"])


def pair(dtype: torch.dtype = torch.float32) -> list[list[nn.Parameter]]:
    torch.manual_seed(0)
    values = [torch.randn(shape, dtype=dtype) for shape in SHAPES]
    values[2] = values[2].to(memory_format=torch.channels_last)
    return [[nn.Parameter(v.clone()) for v in values] for _ in range(2)]


def set_gradients(params: list[list[nn.Parameter]]) -> None:
    for p, q in zip(*params, strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()


@pytest.mark.slow
@kinds
def test_machine_code_equals_the_reference(
    kind: type[LARS] | type[LAMB], options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    params = pair()
    fused = kind(params[0], fused=True, **options)
    reference = kind(params[1], foreach=False, **options)
    for step in range(4):
        set_gradients(params)
        for o in (fused, reference):
            # Changing numbers compiles nothing: see the count below.
            o.param_groups[0]["lr"] = options["lr"] / (1 + step)
            o.param_groups[0]["weight_decay"] = 0.1 * step
            o.step()
    torch.testing.assert_close(params[0], params[1], rtol=1e-5, atol=1e-6)
    large = params[0][2]
    assert large.is_contiguous(memory_format=torch.channels_last)
    cache = _fused._lars_kernel if kind is LARS else _fused._lamb_kernel
    kernel = cache(_fused._Structure(True, False, False, kind is LAMB, True))
    assert kernel._works and kernel._compiled is not None
    # One variant for all shapes, layouts and numbers.
    assert len(torch._dynamo.eval_frame._debug_get_cache_entry_list(kernel._function)) == 1


@kinds
def test_gradient_of_another_layout(kind: type[LARS] | type[LAMB], options: dict[str, Any]) -> None:
    params = pair(torch.float64)
    with support.traced_not_compiled():
        fused = kind(params[0], fused=True, **options)
        reference = kind(params[1], foreach=False, **options)
        for _ in range(2):
            set_gradients(params)
            params[0][2].grad = params[0][2].grad.contiguous()  # the weight is channels_last
            params[0][0].grad = params[0][0].grad.t().contiguous().t()
            for o in (fused, reference):
                o.step()
    torch.testing.assert_close(params[0], params[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", ["lars-maximize", "lars-outside", "lamb", "lamb-capturable"])
def test_whole_lists_as_on_a_gpu(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = support.parameters(), support.parameters()
    with support.traced_not_compiled():
        monkeypatch.setattr("conadv.optim.lars.fused_lars", _fused.compiled_lars_list)
        monkeypatch.setattr("conadv.optim.lamb.fused_lamb", _fused.compiled_lamb_list)
        optimizer = support.make(case, "fused", ours)
        reference = support.make(case, "reference", theirs)
        for step in range(2):
            for params in (ours, theirs):
                support.set_gradients(params, step)
            for o in (optimizer, reference):
                o.param_groups[0]["lr"] = 0.1 * (step + 1)
                o.step()
    assert all(p._version > 0 for p in ours)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)  # lr has become float32


@kinds
def test_failure_to_compile_warns_once_and_goes_on(
    kind: type[LARS] | type[LAMB], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(graph: object, inputs: object) -> object:
        raise OSError("no compiler here")

    compile_ = torch.compile
    params = pair(torch.float64)
    with support.traced_not_compiled():
        monkeypatch.setattr(torch, "compile", lambda f, **kw: compile_(f, backend=broken, **kw))
        optimizer = kind(params[0], fused=True, **options)
        other = kind(params[1], foreach=True, **options)
        set_gradients(params)
        with pytest.warns(UserWarning, match=r"no compiler here.*multi-tensor") as caught:
            optimizer.step()
        assert len(caught) == 1
        other.step()
        set_gradients(params)
        optimizer.step()  # warnings are errors in these tests: no second one
        other.step()
    torch.testing.assert_close(params[0], params[1], rtol=1e-12, atol=1e-14)


@pytest.mark.slow
def test_without_a_c_plus_plus_compiler(tmp_path: Path) -> None:
    script = """
import torch, warnings
from conadv.optim import LARS
w = torch.nn.Parameter(torch.ones(200, 200)); w.grad = torch.ones(200, 200)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    LARS([w], lr=1.0, fused=True).step()
ours = [str(c.message) for c in caught if "fused=True" in str(c.message)]
assert len(ours) == 1, caught
print(ours[0], torch.unique(w).tolist())
"""
    missing = str(tmp_path / "no-such-compiler")
    env = {**os.environ, "CXX": missing, "CC": missing}
    env["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / "cache")
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stderr
    assert "C++ compiler is needed" in done.stdout
    assert "[0.9990000" in done.stdout  # the step was done
