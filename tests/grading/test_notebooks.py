"""The instructor's notebook earns full marks; the students' earns none and crashes nowhere; nbgrader agrees."""

import ast
import os
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from traitlets.config import Config

pytestmark = pytest.mark.notebook
TOPIC = "flash_attention"
POINTS = {
    "flash_attention": {"merge_check": 2.0, "tiled_check": 4.0, "kernel_check": 6.0, "traffic_check": 3.0},
    "kernel_clinic": {"coalescing_check": 4.0, "race_check": 4.0, "blocks_check": 4.0, "report_check": 3.0},
    "ring_all_reduce": {"scatter_check": 4.0, "mean_check": 5.0, "cost_check": 4.0},
    "ddp_overlap": {"weighting_check": 3.0, "overlap_check": 6.0, "accumulate_check": 5.0},
    "training_memory": {"states_check": 3.0, "activations_check": 3.0, "checkpoint_check": 5.0, "plan_check": 4.0},
    "zero_sharding": {"shards_check": 3.0, "optimizer_check": 5.0, "linear_check": 6.0},
    "flops_accounting": {"flops_check": 3.0, "mfu_check": 4.0, "accumulate_check": 4.0, "bill_check": 3.0},
    "decoding": {"top_k_check": 3.0, "top_p_check": 4.0, "beam_check": 5.0, "speculative_check": 5.0},
    "moe_routing": {"route_check": 3.0, "mixture_check": 6.0, "loss_check": 5.0},
    "kv_cache": {"bytes_check": 2.0, "attention_check": 6.0, "generate_check": 4.0},
    "float_formats": {"decode_check": 3.0, "encode_check": 6.0, "stochastic_check": 4.0, "sum_check": 3.0},
    "loss_scaling": {"scale_check": 4.0, "update_check": 4.0, "step_check": 7.0},
    "scaling_fit": {"frontier_check": 3.0, "allocate_check": 3.0, "fit_check": 5.0, "cheapest_check": 4.0},
    "quantizers": {"absmax_check": 3.0, "affine_check": 4.0, "blockwise_check": 4.0, "mixed_check": 5.0},
    "nf4": {"levels_check": 3.0, "quantize_check": 5.0, "dequantize_check": 4.0, "double_check": 4.0},
    "qlora": {"linear_check": 6.0, "bytes_check": 4.0, "pages_check": 4.0},
    "prefix_tuning": {"attention_check": 6.0, "counts_check": 3.0, "encoder_check": 5.0},
    "sft_loss_mask": {"labels_check": 4.0, "loss_check": 5.0, "pack_check": 4.0},
    "lora": {"layer_check": 5.0, "merge_check": 4.0, "count_check": 2.0, "batch_check": 4.0},
}
NUM_STUBS = {
    "flash_attention": 5,
    "kernel_clinic": 6,
    "ring_all_reduce": 6,
    "ddp_overlap": 8,
    "training_memory": 5,
    "zero_sharding": 7,
    "decoding": 4,
    "flops_accounting": 6,
    "moe_routing": 3,
    "kv_cache": 3,
    "float_formats": 4,
    "loss_scaling": 4,
    "scaling_fit": 4,
    "quantizers": 8,
    "nf4": 6,
    "qlora": 6,
    "prefix_tuning": 9,
    "sft_loss_mask": 4,
    "lora": 6,
}
every_topic = pytest.mark.parametrize("topic", POINTS)


def executed(path: Path) -> dict[str, nbformat.NotebookNode]:
    """The graded cells of a notebook, executed, by grade_id."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    ).execute()
    graded = [cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("grade")]
    return {cell.metadata["nbgrader"]["grade_id"]: cell for cell in graded}


def scores(cells: dict[str, nbformat.NotebookNode]) -> dict[str, float]:
    """One number per graded cell, which must be its only result, with nothing on stderr."""
    found = {}
    for grade_id, cell in cells.items():
        assert not [o for o in cell.outputs if o.output_type == "error" or o.get("name") == "stderr"], cell.outputs
        (result,) = [o for o in cell.outputs if o.output_type == "execute_result"]
        found[grade_id] = float(result["data"]["text/plain"])
    return found


def verdicts(cells: dict[str, nbformat.NotebookNode]) -> list[str]:
    """The text that each check shows."""
    shown = [o["data"] for cell in cells.values() for o in cell.outputs if o.output_type == "display_data"]
    assert all("text/html" in data for data in shown)
    return [data["text/plain"] for data in shown]


@every_topic
def test_solution_notebook_earns_full_marks(repository: Path, topic: str) -> None:
    cells = executed(repository / "solutions" / topic / f"{topic}.ipynb")
    assert scores(cells) == POINTS[topic]
    assert all("passed" in text for text in verdicts(cells))


@every_topic
def test_student_notebook_is_not_attempted_and_does_not_crash(repository: Path, topic: str) -> None:
    cells = executed(repository / "exercises" / topic / f"{topic}.ipynb")
    assert scores(cells) == dict.fromkeys(POINTS[topic], 0.0)
    assert [text for text in verdicts(cells) if "not attempted" not in text] == []


@every_topic
def test_student_notebook_holds_no_solution_and_no_hidden_test(repository: Path, topic: str) -> None:
    notebook = nbformat.read(repository / "exercises" / topic / f"{topic}.ipynb", as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells)
    assert "BEGIN" not in text
    assert "seed=295" not in text
    assert text.count("raise NotImplementedError()") == NUM_STUBS[topic]
    for given_away in (
        "4 * N",
        "4N^2",
        "tl.atomic_add(dw_ptr",
        "features[None, :]",
        "< best[0]",
        "rank - 1 - step",
        "grad /= total",
        "self.missing",
    ):
        assert given_away not in text


@every_topic
def test_points_in_the_metadata_are_those_that_the_cell_awards(repository: Path, topic: str) -> None:
    notebook = nbformat.read(repository / "solutions" / topic / f"{topic}.ipynb", as_version=4)
    found = {}
    for cell in notebook.cells:
        metadata = cell.metadata.get("nbgrader", {})
        if metadata.get("grade"):
            call = ast.parse(cell.source).body[-1].value
            assert ast.unparse(call.func) == "result.award"
            assert call.args[0].value == metadata["points"]
            found[metadata["grade_id"]] = float(metadata["points"])
    assert found == POINTS[topic]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # nbgrader's own, about its database
def test_nbgrader_grades_a_submission_with_partial_credit(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through nbgrader itself: release, two submissions, autograde, gradebook."""
    from nbgrader.apps.api import NbGraderAPI
    from nbgrader.coursedir import CourseDirectory

    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")  # nbgrader calls alembic by name
    shutil.copytree(repository / "solutions" / TOPIC, tmp_path / "source" / TOPIC)
    config = Config()
    config.CourseDirectory.root = str(tmp_path)
    config.CourseDirectory.db_url = f"sqlite:///{tmp_path / 'gradebook.db'}"
    config.ExecutePreprocessor.timeout = 300
    api = NbGraderAPI(CourseDirectory(config=config), config=config)
    assert api.generate_assignment(TOPIC)["success"]
    untouched = tmp_path / "release" / TOPIC / f"{TOPIC}.ipynb"
    partly = nbformat.read(untouched, as_version=4)
    solved = nbformat.read(repository / "solutions" / TOPIC / f"{TOPIC}.ipynb", as_version=4)
    for cell, solution in zip(partly.cells, solved.cells, strict=True):
        grade_id = cell.metadata.get("nbgrader", {}).get("grade_id")
        if grade_id == "merge_blocks":
            cell.source = solution.source
        if grade_id == "traffic":
            cell.source = solution.source.replace("scores + scores + scores + scores", "scores + scores")
    for name, notebook in {"nobody": nbformat.read(untouched, as_version=4), "somebody": partly}.items():
        folder = tmp_path / "submitted" / name / TOPIC
        folder.mkdir(parents=True)
        nbformat.write(notebook, folder / f"{TOPIC}.ipynb")
        graded = api.autograde(TOPIC, name)
        assert graded["success"], graded.get("log") or graded.get("error")
    with api.gradebook as gradebook:
        nobody = gradebook.find_submission(TOPIC, "nobody")
        somebody = gradebook.find_submission(TOPIC, "somebody")
        assert nobody.max_score == sum(POINTS[TOPIC].values())
        assert nobody.score == 0
        assert somebody.score == pytest.approx(2 + 3 * 3 / 5)
