from __future__ import annotations

from pathlib import Path

import pytest

from hal.backend import BackendRef
from hal.testing import check_isolated, checks

FAKE = "hal.testing.fake:FakeBackend"


def test_check_isolated_passes_all_when_the_backend_is_sound() -> None:
    seen: list[str] = []
    results = check_isolated(BackendRef(FAKE), seen.append)
    assert tuple(seen) == checks()
    assert [result.name for result in results if result.outcome == "failed"] == []
    assert sum(result.outcome == "passed" for result in results) > 20


@pytest.mark.parametrize(
    ("how", "word"), [("segfault", "was ended by SIGSEGV"), ("exit", "exited with status 7")]
)
def test_check_isolated_names_the_check_when_the_plugin_takes_its_process_down(how: str, word: str) -> None:
    results = check_isolated(BackendRef(FAKE, {"fail": [{"at": "kernels", "how": how}]}))
    assert [result.name for result in results] == list(checks())
    (failed,) = [result for result in results if result.outcome == "failed"]
    assert word in failed.message
    assert failed.name != checks()[0]
    later = results[[result.name for result in results].index(failed.name) + 1]
    assert later.message == f"the process ended in {failed.name}"


def test_check_isolated_names_the_check_when_the_plugin_hangs() -> None:
    ref = BackendRef(FAKE, {"fail": [{"at": "discover", "how": "hang"}]})
    (failed,) = [result for result in check_isolated(ref, deadline_s=5) if result.outcome == "failed"]
    assert "gave no sign of life for 5 s" in failed.message


def test_check_isolated_blames_the_right_check_when_an_error_cannot_be_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "surrogate_backend.py").write_text(
        "from hal.testing.fake import FakeBackend\n"
        "class Surrogate(FakeBackend):\n"
        "    def discover(self): raise RuntimeError('lone \\ud800')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    results = check_isolated(BackendRef("surrogate_backend:Surrogate"))
    assert [result.name for result in results] == list(checks())
    failed = [result for result in results if result.outcome == "failed"]
    assert failed
    assert all("raised RuntimeError: lone ?" in result.message for result in failed)
