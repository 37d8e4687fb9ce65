"""Battery and heat, from trees of files as Linux writes them."""

import pytest

from nanochat.hardware import power
from nanochat.hardware.power import Power, read_power
from tests.hardware.conftest import Plant

BATTERY, MAINS = f"{power.SUPPLIES}/BAT0", f"{power.SUPPLIES}/AC"
ON_BATTERY: dict[str, object] = {f"{BATTERY}/type": "Battery", f"{BATTERY}/status": "Discharging", f"{BATTERY}/capacity": 63}


def test_a_machine_that_tells_nothing(plant: Plant) -> None:
    plant({})
    assert read_power() == Power() and power.throttle_count() == 0


def test_on_battery(plant: Plant) -> None:
    plant(ON_BATTERY | {f"{MAINS}/type": "Mains", f"{MAINS}/online": 0})
    assert read_power().battery == 63


@pytest.mark.parametrize(
    "files",
    [
        {f"{MAINS}/type": "Mains", f"{MAINS}/online": 1},
        {f"{power.SUPPLIES}/ucsi/type": "USB", f"{power.SUPPLIES}/ucsi/online": 1},
        {f"{BATTERY}/status": "Charging"},
        {f"{BATTERY}/status": "Full"},
        {f"{BATTERY}/scope": "Device"},
    ],
    ids=["mains", "USB-C", "charging", "full", "a mouse's battery"],
)
def test_not_on_battery(files: dict[str, object], plant: Plant) -> None:
    plant(ON_BATTERY | files)
    assert read_power().battery is None


@pytest.mark.parametrize(("allowed", "said"), [(4_000_000, ""), (3_000_000, ""), (1_600_000, "to 40% of its frequency")])
def test_a_limited_frequency(allowed: int, said: str, plant: Plant) -> None:
    for number in (0, 1, 10):
        folder = f"{power.PROCESSORS}/cpu{number}/cpufreq"
        plant({f"{folder}/cpuinfo_max_freq": 4_000_000, f"{folder}/scaling_max_freq": allowed})
    plant({f"{power.PROCESSORS}/cpufreq/x": 1, f"{power.PROCESSORS}/cpuidle/x": 1})
    found = read_power().throttled
    assert found.endswith(said) and bool(found) == bool(said)


@pytest.mark.parametrize(("kind", "temperature", "hot"), [("hot", 99_000, True), ("hot", 94_000, False), ("passive", 99_000, False)])
def test_heat(kind: str, temperature: int, hot: bool, plant: Plant) -> None:
    zone = f"{power.ZONES}/thermal_zone0"
    plant({f"{zone}/type": "x86_pkg_temp", f"{zone}/temp": temperature})
    plant({f"{zone}/trip_point_0_temp": 95_000, f"{zone}/trip_point_0_type": kind, f"{zone}/trip_point_1_temp": 0})
    assert bool(read_power().throttled) is hot


def test_throttling_is_counted(plant: Plant) -> None:
    folder = f"{power.PROCESSORS}/cpu0/thermal_throttle"
    plant({f"{folder}/core_throttle_count": 3, f"{folder}/package_throttle_count": 4})
    assert power.throttle_count() == 7
