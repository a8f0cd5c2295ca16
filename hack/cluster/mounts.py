"""Mounts under the cache folder: the shared images', a killed debootstrap's, a killed dockerd's."""

import os
import re
import subprocess
from pathlib import Path

from .progress import output

MOUNTINFO = Path("/proc/self/mountinfo")


def mount_points(mountinfo: str) -> list[Path]:
    """The mount points of a mountinfo file, in mount order. Source: proc(5), field 5, with octal escapes."""
    escaped = (line.split(" ")[4] for line in mountinfo.splitlines())
    return [Path(re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), point)) for point in escaped]


def mounted_below(folder: Path) -> list[Path]:
    """Mount points at or below the folder, innermost first."""
    if not MOUNTINFO.exists():  # not Linux: nothing was mounted by us
        return []
    points = mount_points(MOUNTINFO.read_text())
    return [point for point in reversed(points) if point == folder or folder in point.parents]


def is_mounted(folder: Path) -> bool:
    return MOUNTINFO.exists() and folder in mount_points(MOUNTINFO.read_text())


def unmount_below(folder: Path) -> int:
    """Takes away every mount at or below the folder; returns how many there were."""
    points = mounted_below(folder)
    for point in points:
        # Lazily where it is busy: what held it is being ended too, and the mount goes with its last user.
        if subprocess.run(["umount", point], capture_output=True).returncode:
            subprocess.run(["umount", "-l", point], capture_output=True)
    return len(points)


def mount_shared(folder: Path) -> None:
    """Makes the folder a shared mount: what is mounted in it later appears in the containers that hold it."""
    if not is_mounted(folder):
        output(["mount", "--bind", folder, folder])
    output(["mount", "--make-shared", folder])


def mount_read_only(layers: list[str], base: Path, target: Path) -> None:
    """Mounts an image's layers, topmost first and named relative to `base`, as one read-only tree."""
    target.mkdir(exist_ok=True)
    if len(layers) == 1:
        output(["mount", "--bind", "-o", "ro", os.path.realpath(base / layers[0]), target])
    else:
        # Relative names, resolved against the working folder: the kernel takes one page of options, which the
        # full names of about 35 layers fill.
        output(["mount", "-t", "overlay", "-o", "ro,lowerdir=" + ":".join(layers), "overlay", target], folder=base)
