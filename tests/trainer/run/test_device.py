"""Device and precision: what is chosen, and what is said about it."""

import pytest
import torch

from conadv.errors import RecipeError
from conadv.trainer.run import device as precision
from conadv.trainer.run.device import autocast_dtype, choose_precision, resolve_device
from conadv.trainer.step import Precision


def features(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(precision, "cpu_features", lambda: set(names))


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16", "bf16"])
def test_auto_takes_bf16_where_the_processor_has_it(
    flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    features(monkeypatch, "avx2", flag)
    chosen = choose_precision("auto", "cpu")
    assert (chosen.name, chosen.dtype) == ("bf16", torch.bfloat16)
    assert flag in chosen.reason


def test_auto_takes_fp32_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    features(monkeypatch, "avx2", "avx512_bw")
    chosen = choose_precision("auto", "cpu")
    assert (chosen.name, chosen.dtype) == ("fp32", None)
    assert "no bf16" in chosen.reason


def test_what_is_asked_for_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    features(monkeypatch)
    slow = choose_precision("bf16", "cpu")
    assert slow.dtype is torch.bfloat16
    assert "slow" in slow.reason
    assert autocast_dtype("fp16", "cpu") is torch.float16
    assert autocast_dtype("fp32", "cpu") is None


@pytest.mark.parametrize(
    ("has", "name"), [(True, "bf16"), (False, "fp32")], ids=["new GPU", "old GPU"]
)
def test_auto_on_a_gpu(has: bool, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return has or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    chosen = choose_precision("auto", "cuda")
    assert chosen.name == name
    assert "a card" in chosen.reason
    assert ("fp16" in chosen.reason) is not has


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)],
)
def test_autocast_computes_in_it(name: str, dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(4, 4)
    precision = Precision(torch.device("cpu"), autocast_dtype(name, "cpu"))
    assert precision.grad_scaler().is_enabled() is (name == "fp16")
    with precision.autocast():
        assert layer(torch.ones(1, 4)).dtype is dtype
    assert layer(torch.ones(1, 4)).dtype is torch.float32


def test_an_unknown_precision() -> None:
    with pytest.raises(RecipeError, match="allowed are auto, bf16, fp16, fp32"):
        choose_precision("fp8", "cpu")


def test_processor_features_are_found_here() -> None:
    import platform

    if platform.machine() in ("x86_64", "AMD64"):
        assert {"sse2"} <= precision.cpu_features()
    elif platform.machine() in ("aarch64", "arm64"):
        assert precision.cpu_features() & {"asimd", "neon"}


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(RecipeError, match="allowed are auto, cpu, mps, cuda and cuda:N"):
        resolve_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(RecipeError, match="Use auto or cpu"):
        resolve_device("cuda")
    with pytest.raises(RecipeError, match="no Apple GPU"):
        resolve_device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(RecipeError, match="there are 2 GPUs, numbered from 0"):
        resolve_device("cuda:2")
