"""What happened in a run, line by line, in files that survive being killed.

    records.jsonl, records.csv      one line per update: loss, learning rate, norm of the gradient, tokens/s, MFU
    evaluations.jsonl               one line per evaluation: losses by domain

Each line is handed to the operating system at once. A killed process can leave half a line, and lines of updates
after its last checkpoint, which will be done again. So whoever resumes cuts the log first: whole lines, up to the
checkpoint's step, nothing twice. The CSV file is a copy of the JSON lines for spreadsheets, and is then written anew.
"""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import IO, Any

from cme295lab.pretraining.trainer.checkpoint import write_atomically

Record = dict[str, Any]
RECORDS, TABLE, EVALUATIONS = "records.jsonl", "records.csv", "evaluations.jsonl"
COLUMNS = (
    "step", "loss", "auxiliary_loss", "learning_rate", "gradient_norm", "num_tokens", "tokens_per_s", "mfu",
)  # fmt: skip


class RunLog:
    """Writes the lines of a run; use it as a context, so that the files are closed.

    Args:
        folder: of the run; None writes nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._files: dict[str, IO[str]] = {}

    def __enter__(self) -> RunLog:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in (RECORDS, TABLE, EVALUATIONS):
                self._files[name] = (self.folder / name).open("a", encoding="utf-8", newline="")
            if not self._files[TABLE].tell():
                self._write(TABLE, _csv_line(COLUMNS))
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.close()
        self._files = {}

    def record(self, record: Record) -> None:
        """Add the line of an update."""
        if self._files:
            self._write(RECORDS, json.dumps(record) + "\n")
            self._write(TABLE, _csv_line(record[column] for column in COLUMNS))

    def evaluation(self, evaluation: Record) -> None:
        """Add the line of an evaluation."""
        if self._files:
            self._write(EVALUATIONS, json.dumps(evaluation) + "\n")

    def sync(self) -> None:
        """Force all lines so far to the disk."""
        for file in self._files.values():
            os.fsync(file.fileno())

    def _write(self, name: str, line: str) -> None:
        self._files[name].write(line)
        self._files[name].flush()


def cut_log(folder: Path, step: int) -> tuple[list[Record], list[Record]]:
    """Cut a log back to a step, and return its records and evaluations up to there.

    Args:
        folder: of the run.
        step: the checkpoint's.

    Raises:
        ValueError: if a line before the checkpoint is missing or damaged.
    """
    records = _whole_lines(folder / RECORDS, step)
    if [record["step"] for record in records] != list(range(1, step + 1)):
        raise ValueError(f"{folder / RECORDS} lacks lines up to step {step}, or has some twice: it was changed")
    evaluations = _whole_lines(folder / EVALUATIONS, step)
    for name, lines in ((RECORDS, records), (EVALUATIONS, evaluations)):
        write_atomically(folder / name, "".join(json.dumps(line) + "\n" for line in lines).encode())
    table = [_csv_line(COLUMNS), *(_csv_line(record[column] for column in COLUMNS) for record in records)]
    write_atomically(folder / TABLE, "".join(table).encode())
    return records, evaluations


def _whole_lines(path: Path, step: int) -> list[Record]:
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n"):
            break  # half a line, the last
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} has a line that is not JSON: {line[:80]!r}") from error
        if entry["step"] > step:
            break
        found.append(entry)
    return found


def _csv_line(values: Any) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(["" if value is None else value for value in values])
    return out.getvalue()
