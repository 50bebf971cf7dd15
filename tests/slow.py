"""Which tests take long, as measured: `tests/slow.txt`, a line each. `conftest.py` marks them `slow`, so that the fast
suite stays below eight minutes on two cores; `make test-all` runs them too.

    .venv/bin/python -m pytest -m "not gpu" --junitxml=all.xml -n 2 --dist loadfile   # an hour
    .venv/bin/python -m tests.slow all.xml

A test that is marked by hand needs no line. `KEPT` are files and tests that are run always, however long they take: the
rules of the house, and those that alone go their way through the whole program.
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

FILE = Path(__file__).with_suffix(".txt")
LONG_S = 1.0
STAYS_S = 4.0  # beyond that no value of a test stays
KEPT = (
    "tests/house.py",
    "tests/house_imports.py",
    "tests/test_app_form.py",
    "tests/test_batch_ray.py::test_on_a_cluster_of_two_nodes_one_of_which_goes_away_the_pictures_are_the_same",
    "tests/test_cli.py",
    "tests/test_memory_acts.py",
    "tests/test_page_edit.py::test_a_crop_of_a_buckets_shape_is_undone_after_a_reload",
    "tests/test_page_edit.py::test_a_mask_is_painted_kept_and_trained_with",
    "tests/test_page_kept.py::test_the_form_the_tab_and_the_dataset_outlive_a_reload_and_a_killed_server",
    "tests/test_page_library.py::test_what_is_dropped_opens_where_it_belongs",
    "tests/test_page_train.py",
    "tests/test_page_values.py::test_a_changed_field_is_kept_and_looked_at_once_and_no_other_is",
    "tests/test_page_values.py::test_many_fields_reach_an_event_as_gradio_itself_sends_them",
    "tests/test_private_names.py",
    "tests/test_memory_ladder.py::test_a_run_that_runs_out_takes_the_step_again_one_rung_up",
    "tests/test_resume.py::test_broken_off_anywhere_and_resumed_is_unbroken[adamw]",
    "tests/test_run_evaluation.py::test_the_best_step_is_kept_and_says_why",
    "tests/test_serving.py::test_a_few_different_stacks_are_drawn_together_only_where_that_is_faster",
    "tests/test_serving.py::test_a_picture_alone_has_the_bytes_of_render",
    "tests/test_serving.py::test_different_stacks_are_one_batch_and_each_its_own_picture",
    "tests/test_serving_replicas.py::test_a_picture_has_the_bytes_of_render",
    "tests/test_stacking_modes.py",
    "tests/test_start_from_lora.py::test_step_0_draws_what_the_lora_draws[lora]",
    "tests/test_training.py::test_a_run_says_what_it_does_and_leaves_what_it_said",
    "tests/test_world.py::test_two_processes_train_the_same_adapter_as_one_and_write_one_run",
)


def listed() -> set[str]:
    """The ids of the tests that take long."""
    return {line.split(" ", 1)[1] for line in FILE.read_text(encoding="utf-8").splitlines()}


def measured(report: Path) -> dict[str, float]:
    """Seconds that each test took, by its id, from one of pytest's JUnit reports."""
    taken = {}
    for case in ElementTree.parse(report).iter("testcase"):
        file = case.attrib["classname"].replace(".", "/") + ".py"
        taken[f"{file}::{case.attrib['name']}"] = float(case.attrib["time"])
    return taken


def chosen(seconds: dict[str, float]) -> dict[str, float]:
    """Those that take long. Of a test with several values the quickest stays, so that each is run by the fast suite."""
    long = {name: taken for name, taken in seconds.items() if taken >= LONG_S and not name.startswith(KEPT)}
    for test in {name.partition("[")[0] for name in long if "[" in name}:
        values = [name for name in seconds if name.partition("[")[0] == test]
        if all(name in long for name in values) and seconds[best := min(values, key=seconds.__getitem__)] < STAYS_S:
            del long[best]
    return long


def main(report: Path) -> None:
    """Write the list anew."""
    long = chosen(measured(report))
    FILE.write_text("".join(f"{seconds:.0f} {name}\n" for name, seconds in sorted(long.items())), encoding="utf-8")
    print(f"{len(long)} tests take {LONG_S:.0f} s or longer, {sum(long.values()):.0f} s in all")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
