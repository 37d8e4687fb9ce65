"""Battery and heat of this machine, from the files in which Linux describes them. Other systems tell nothing here."""

from dataclasses import dataclass

from nanochat.hardware import cgroups, procfs

SUPPLIES, PROCESSORS, ZONES = "/sys/class/power_supply", "/sys/devices/system/cpu", "/sys/class/thermal"
SLOWED = 0.7  # fraction of a processor's highest frequency below which the system's limit is named
HOT = ("hot", "critical")  # trip points of a thermal zone at which the processor is slowed down or the machine ends


@dataclass(frozen=True)
class Power:
    """`battery`: percent left while it is used, None on mains or without one. `throttled`: why the processor is slow, "" if it is not."""

    battery: int | None = None
    throttled: str = ""


def read_power() -> Power:
    """The present state."""
    return Power(_battery(), _limit() or _heat())


def throttle_count() -> int:
    """Times since boot that heat slowed a processor down, of all processors; 0 where the system does not tell."""
    names = ("core_throttle_count", "package_throttle_count")
    return sum(cgroups.number(f"{folder}/thermal_throttle/{name}") or 0 for folder in _processors() for name in names)


def _battery() -> int | None:
    """Percent left of the fullest battery if the machine runs on one."""
    left: list[int] = []
    for folder in procfs.entries(SUPPLIES):
        kind, scope = (procfs.read(f"{folder}/{name}").strip() for name in ("type", "scope"))
        if kind in ("Mains", "USB") and procfs.read(f"{folder}/online").strip() == "1":
            return None
        if kind == "Battery" and scope != "Device" and procfs.read(f"{folder}/status").strip() == "Discharging":  # Device: a mouse's
            left.append(cgroups.number(f"{folder}/capacity") or 0)
    return max(left, default=None)


def _processors() -> list[str]:
    return [path for path in procfs.entries(PROCESSORS) if path.rpartition("/cpu")[2].isdigit()]


def _limit() -> str:
    """A limit of the frequency below the processor's own, which a power-saving mode or the firmware sets; "" if there is none."""
    shares = []
    for folder in _processors():
        most, allowed = (cgroups.number(f"{folder}/cpufreq/{name}") for name in ("cpuinfo_max_freq", "scaling_max_freq"))
        if most and allowed:
            shares.append(allowed / most)
    if not shares or max(shares) >= SLOWED:
        return ""
    return f"the system limits the processor to {max(shares):.0%} of its frequency"


def _heat() -> str:
    """A thermal zone at its hot or critical trip point; "" if there is none."""
    for folder in procfs.entries(ZONES):
        now, kind = cgroups.number(f"{folder}/temp"), procfs.read(f"{folder}/type").strip()
        points = [path.removesuffix("_type") for path in procfs.entries(folder) if path.endswith("_type") and "/trip_point_" in path]
        for point in points:
            trip = cgroups.number(f"{point}_temp")
            if now and trip and now >= trip and procfs.read(f"{point}_type").strip() in HOT:
                return f"the sensor {kind[:40]} is at {now / 1000:.0f} °C, where the system slows down the processor"
    return ""
