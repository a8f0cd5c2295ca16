"""Cluster and images are brought up at once: what is shown, and what becomes of the other when one fails."""

import subprocess
import sys

import pytest

from hack.install import side_by_side

SLEEP = (sys.executable, "-c", "import time; time.sleep(60)")


def prints(text: str, code: int = 0) -> tuple[str, ...]:
    return (sys.executable, "-c", f"import sys; print({text!r}); sys.exit({code})")


def test_each_line_says_whose_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    assert set(side_by_side({"cluster": prints("up"), "images": prints("built")})) == {"cluster", "images"}
    assert set(capfd.readouterr().out.splitlines()) == {"cluster | up", "images  | built"}


def test_one_that_fails_ends_the_others_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    real = subprocess.Popen

    def popen(*words: object, **options: object) -> object:
        started.append(real(*words, **options))  # type: ignore[call-overload]
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(subprocess.CalledProcessError) as failed:
        side_by_side({"cluster": SLEEP, "images": prints("", code=3)})
    assert failed.value.returncode == 3
    assert [process.poll() is not None for process in started] == [True, True]
