"""train/run_log.py: the log after a resume, and while a line is being written."""

from slm_fn.train import run_log


def test_truncating_drops_later_lines_and_a_line_cut_short(tmp_path):
    path = tmp_path / run_log.METRICS
    for step in (10, 20, 30):
        run_log.append(path, {"step": step})
    with open(path, "ab") as file:
        file.write(b'{"step": 5, "tr')
    run_log.truncate_after(tmp_path, 20)
    assert [row["step"] for row in run_log.read_rows(path)] == [10, 20]
    assert path.read_bytes().endswith(b"\n")


def test_a_line_being_written_is_not_read(tmp_path):
    path = tmp_path / run_log.METRICS
    run_log.append(path, {"step": 1})
    with open(path, "ab") as file:
        file.write(b'{"step": 2')
    assert [row["step"] for row in run_log.read_rows(path)] == [1]


def test_updating_run_json_changes_only_what_it_names(tmp_path):
    assert run_log.read_info(tmp_path) == {}
    run_log.write_info(tmp_path, {"stage": "sft", "status": "running"})
    run_log.update_info(tmp_path, status="done")
    assert run_log.read_info(tmp_path) == {"stage": "sft", "status": "done"}
