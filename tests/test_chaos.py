"""Every fault is detected, nothing is lost, and the next run ends with the rows of an undisturbed one."""

from pathlib import Path

import pytest

from dev import chaos
from repro.errors import ReproError


def counted(runs: int, names: list[str]) -> list[chaos.Fault]:
    found = chaos.run(runs, names, lambda text: None)
    assert all(fault.injected for fault in found)
    return found


def test_damaged_data_and_checkpoints_are_refused() -> None:
    assert [f"{f.name}: {f}" for f in counted(6, ["data", "checkpoint"]) if not f.ok] == []


def test_a_fault_that_goes_unnoticed_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        chaos.Chaos, "damage", lambda self, data: data
    )  # nothing is damaged, so nothing can be detected
    [fault] = chaos.run(2, ["data"], lambda text: None)
    assert (fault.injected, fault.detected, fault.ok) == (2, 0, False)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_fault() -> None:
    assert [f"{f.name}: {f}" for f in counted(3, list(chaos.FAULTS)) if not f.ok] == []


def test_the_table_goes_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "faults.md"
    page.write_text(f"# Faults\n\n{chaos.BEGIN}\nold\n{chaos.END}\nafter\n")
    faults = [chaos.Fault("one", 2, 2, 2, 0), chaos.Fault("two", 3, 3, 2, 1)]
    chaos.write(page, chaos.HEAD, chaos.table(faults), "repro chaos")
    text = page.read_text()
    assert (
        "| all | 5 | 5 | 4 | 1 |" in text
        and "old" not in text
        and text.startswith("# Faults")
        and text.endswith("after\n")
    )
    page.write_text("# Faults\n")
    with pytest.raises(ReproError, match="no place for the table"):
        chaos.write(page, chaos.HEAD, chaos.table(faults), "repro chaos")
    with pytest.raises(ReproError, match="unknown fault"):
        chaos.run(1, ["flood"])
