"""MLX's own limits: what the plan wants, in which order they are set, and that they are put back."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from r1mac.catalog.models import find
from r1mac.engine.memory import limits
from r1mac.machine.fake import M2_ULTRA_192, M3_ULTRA_512, M4_16, M4_MAX_128
from r1mac.plan.fit import fit
from r1mac.plan.memory import Quantization, weight_bytes
from r1mac.units import GIB


def plan_of(name, hardware, **wishes):
    spec = find(name)
    assert spec is not None
    return fit(spec.arch, hardware, stored_bytes=weight_bytes(spec.arch, Quantization(bits=4)), **wishes)


def device(hardware):
    return {
        "max_recommended_working_set_size": hardware.wired_limit_bytes,
        "memory_size": hardware.memory_bytes,
        "device_name": hardware.chip,
    }


def test_a_model_of_half_the_memory_is_wired_with_its_cache():
    large = plan_of("70b", M4_MAX_128, context_tokens=131072)
    chosen = limits.choose_limits(large, device(M4_MAX_128))
    assert chosen is not None
    assert chosen.wired_bytes == large.total_bytes + GIB
    assert chosen.memory_bytes == large.budget_bytes


def test_a_small_model_wires_nothing():
    chosen = limits.choose_limits(plan_of("8b", M2_ULTRA_192), device(M2_ULTRA_192))
    assert chosen is not None
    assert chosen.wired_bytes == 0


def test_nothing_exceeds_the_working_set_and_kept_buffers_stay_within_the_plan():
    plan = plan_of("32b", M4_16)  # does not fit: someone forced it
    chosen = limits.choose_limits(plan, device(M4_16))
    assert chosen is not None
    assert chosen.wired_bytes == M4_16.wired_limit_bytes
    assert 0 < chosen.cache_bytes <= GIB
    assert chosen.memory_bytes == M4_16.wired_limit_bytes
    roomy = plan_of("671b", M3_ULTRA_512)
    kept = limits.choose_limits(roomy, device(M3_ULTRA_512))
    assert kept is not None
    assert kept.cache_bytes == roomy.prefill_scratch_bytes
    assert kept.wired_bytes >= roomy.total_bytes


class RecordingMLX(SimpleNamespace):
    """MLX's limits of a Mac: remembers calls, answers with the former value, refuses what Metal refuses."""

    def __init__(self, info):
        super().__init__(calls=[], values={"memory": 100, "cache": 90, "wired": 0}, info=info)

    def device_info(self):
        return self.info

    def synchronize(self):
        self.calls.append("synchronize")

    def _set(self, name, value):
        if name == "wired" and value > self.info["max_recommended_working_set_size"]:
            raise ValueError("[metal::set_wired_limit] larger than the maximum working set size")
        former, self.values[name] = self.values[name], value
        self.calls.append(name)
        return former

    def set_memory_limit(self, value):
        return self._set("memory", value)

    def set_cache_limit(self, value):
        return self._set("cache", value)

    def set_wired_limit(self, value):
        return self._set("wired", value)


@pytest.fixture
def recording(monkeypatch):
    def pretend(info):
        fake = RecordingMLX(info)
        monkeypatch.setattr(limits, "mx", fake)
        return fake

    return pretend


def test_limits_are_set_in_order_and_put_back_when_an_answer_fails(recording):
    mlx = recording(device(M4_MAX_128))
    block = limits.limited(plan_of("70b", M4_MAX_128, context_tokens=131072))
    block.__enter__()
    assert mlx.calls == ["memory", "cache", "wired"]
    assert mlx.values["wired"] > 0
    assert not block.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert mlx.values == {"memory": 100, "cache": 90, "wired": 0}
    assert mlx.calls == ["memory", "cache", "wired", "synchronize", "wired", "cache", "memory"]


def test_a_device_without_a_working_set_is_left_alone(recording):
    mlx = recording({"device_name": "AMD EPYC", "architecture": "x86_64"})
    with limits.limited(plan_of("70b", M4_MAX_128)) as limiting:
        assert limiting.limits is None
    assert mlx.calls == []


def test_this_computer_answers_device_info():
    """The real library is asked once: the name that r1mac takes exists, and a CPU is left alone or a GPU is limited."""
    with limits.limited(plan_of("8b", M2_ULTRA_192)) as limiting:
        assert limiting.limits is None or limiting.limits.memory_bytes > 0


def test_another_plan_of_a_loaded_model_changes_the_limits_and_the_first_ones_come_back(recording):
    """What is wired follows the plan up and down, after what is at work; at the end all is as before the model."""
    mlx = recording(device(M4_MAX_128))
    small, large = plan_of("70b", M4_MAX_128, context_tokens=4096), plan_of("70b", M4_MAX_128, context_tokens=131072)
    small = replace(small, weight_bytes=small.weight_bytes // 2)  # less than half of the memory: not wired
    with limits.limited(small) as limiting:
        assert mlx.values["wired"] == 0
        limiting.follow(large)
        assert mlx.values["wired"] == large.total_bytes + GIB
        assert mlx.calls.index("synchronize") < mlx.calls.index("wired")
        limiting.follow(small)
        assert mlx.values["wired"] == 0
        limiting.follow(large)
    assert mlx.values == {"memory": 100, "cache": 90, "wired": 0}
