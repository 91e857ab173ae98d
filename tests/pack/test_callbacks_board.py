"""Event files of TensorBoard that follow each other within a second."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hookbrew_plugins.callbacks.board import board


def number(folder: Path) -> str:
    """What the name of a new event file ends with: a count of those that this process has written."""
    writer = board(folder, 0)
    writer.close()
    (path,) = folder.iterdir()
    return path.name.rpartition(".")[2]


def test_files_are_read_in_the_order_in_which_they_were_written(tmp_path):
    """Number 10 would come before number 9, and 100 before 99."""
    other = 0
    while set(str(int(number(tmp_path / f"other{other}")) + 1)) != {"9"}:
        other += 1
    for step in (1, 2):
        writer = board(tmp_path / "tb", step)
        writer.add_scalar("loss", 0.5, step)
        writer.close()
    read = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [event.step for event in read.Scalars("loss")] == [1, 2]
