"""This machine's CPU: its cores and speed."""

from nanochat.hardware import cpu


def test_this_machines_cores_and_speed() -> None:
    assert 1 <= cpu.physical_cores() <= 4096
    assert cpu.measure_flops(0.01) > 1e8
