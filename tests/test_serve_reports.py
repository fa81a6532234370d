"""Reports of evaluations over the HTTP API: tables for service keys, and nothing else of the folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penname.errors import BadInputError
from penname.serve.app import create_app
from penname.serve.settings import ServeSettings
from saved_reports import SECRET, save_report
from serve_app import serving

EVIL = "<script>alert(1)</script>"


def test_a_report_is_its_tables_with_intervals(tmp_path: Path) -> None:
    folder = save_report(tmp_path / "mail")
    with serving(tmp_path, reports=(folder,)) as service:
        listed = service("service", "GET", "/v1/reports").json()
        short = {"name": "mail", "data": "sample 5cbd, test split", "model": "told", "arms": 3}
        assert listed == {"data": [short]}
        answer = service("service", "GET", "/v1/reports/mail")
        found = answer.json()
        assert found["settings"]["k"] == 3
        assert found["command"] == (
            "penname evaluate sample --task email --method none --method step-back --control swap-user "
            "--users one --k 3 --seed 0 --model told --split test"
        )
        [table] = found["tables"]
        assert (table["task"], table["examples"], table["users"], table["baseline"]) == (
            "email",
            16,
            8,
            "none",
        )
        assert [one["label"] for one in table["metrics"]] == ["ROUGE-1"]
        [ours] = [one for one in table["comparisons"] if (one["arm"], one["other"]) == ("step-back", "none")]
        assert ours["low"] <= ours["difference"] <= ours["high"]
        assert ours["difference"] == pytest.approx(0.2, abs=0.01)
        assert ours["clear"]
        assert {one["arm"] for one in table["verdicts"]} >= {"step-back"}
        assert SECRET not in answer.text
        assert "user-0" not in answer.text


def test_an_evaluation_that_goes_on_is_read_anew(tmp_path: Path) -> None:
    folder = save_report(tmp_path / "mail")
    with serving(tmp_path, reports=(folder,)) as service:

        def examples() -> int:
            return int(service("service", "GET", "/v1/reports/mail").json()["tables"][0]["examples"])

        assert (examples(), examples()) == (16, 16)
        save_report(folder, rows=3)
        assert examples() == 24


def test_nothing_written_yet_is_no_error(tmp_path: Path) -> None:
    folder = save_report(tmp_path / "mail", rows=0)
    with serving(tmp_path, reports=(folder,)) as service:
        assert service("service", "GET", "/v1/reports/mail").json()["tables"] == []


def test_reports_are_for_services_and_show_no_path(tmp_path: Path) -> None:
    model, method = str(tmp_path / "base" / "model"), f"p-dpo:{tmp_path / 'runs' / 'ours'}"
    folder = save_report(tmp_path / "mail", model=model, method=method, remark=f"judged by {model}")
    with serving(tmp_path, reports=(folder,)) as service:
        answer = service("service", "GET", "/v1/reports/mail")
        assert str(tmp_path) not in answer.text
        assert tmp_path.name not in answer.text
        found = answer.json()
        assert [one["name"] for one in found["listed"]] == ["none", "p-dpo:ours", "p-dpo:ours · swap-user"]
        assert (found["model"], found["remarks"]) == ("model", ["judged by model"])
        for path in ("/v1/reports", "/v1/reports/mail"):
            assert service("ann", "GET", path).status_code == 403
            assert service(None, "GET", path).status_code == 401
        for name in ("other", "..%2Fmail", "%2Fetc", "mail%2Frun.json"):
            assert service("service", "GET", f"/v1/reports/{name}").status_code == 404


def test_of_two_runs_that_end_alike_both_are_told_apart(tmp_path: Path) -> None:
    folders = tuple(save_report(tmp_path / part / "mail") for part in "ab")
    with serving(tmp_path, reports=(*folders, folders[0])) as service:
        names = [one["name"] for one in service("service", "GET", "/v1/reports").json()["data"]]
        assert len(set(names)) == 2
        assert all(name.startswith("mail-") for name in names)
        assert service("service", "GET", f"/v1/reports/{names[0]}").status_code == 200


def test_a_folder_that_breaks_later_is_left_out(tmp_path: Path) -> None:
    folder = save_report(tmp_path / "mail")
    with serving(tmp_path, reports=(folder,)) as service:
        (folder / "run.json").write_text("{")
        assert service("service", "GET", "/v1/reports").json()["data"] == []
        gone = service("service", "GET", "/v1/reports/mail")
        assert gone.status_code == 404
        assert str(tmp_path) not in gone.text


def test_what_is_no_evaluation_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no folder of an evaluation"):
        create_app(ServeSettings(db=tmp_path / "x.db", reports=(tmp_path,)))


def test_markup_in_a_folder_stays_text(tmp_path: Path) -> None:
    folder = save_report(tmp_path / "mail", method=f"in-context{EVIL}", remark=EVIL)
    with serving(tmp_path, reports=(folder,)) as service:
        answer = service("service", "GET", "/v1/reports/mail")
        assert answer.headers["content-type"] == "application/json"
        assert json.loads(answer.text)["remarks"] == [EVIL]
