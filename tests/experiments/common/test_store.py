"""The folder of a run: nothing finished is lost, and nothing foreign is mixed in."""

import json

import pytest

from experiments.common import store
from experiments.common.errors import UserError
from experiments.common.store import open_store

CONFIG = {"epochs": 3, "data": {"train_size": 40}, "noise": (0.0, 0.3)}
RECORD = {"kind": "test", "noise": 0.1, "method": "plain", "seed": 0, "train_loss": 0.1 + 0.2}


def opened(workdir, identity, **options):
    return open_store(workdir, identity, "results.jsonl", ("kind", "noise", "seed"), **options)


def test_records_come_back_exactly(tmp_path):
    with opened(tmp_path / "a" / "b", CONFIG) as results:
        results.append(RECORD)
        assert RECORD in results
    with opened(tmp_path / "a" / "b", CONFIG) as results:
        assert results.records == [RECORD]
        assert RECORD in results
        assert RECORD | {"seed": 1} not in results and RECORD | {"noise": 0.2} not in results


def test_a_line_cut_short_is_dropped_and_the_next_one_starts_clean(tmp_path):
    with opened(tmp_path, CONFIG) as results:
        results.append(RECORD)
    path = tmp_path / "results.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:-9])
    with opened(tmp_path, CONFIG) as results:
        results.append(RECORD | {"seed": 1})
    assert [json.loads(line)["seed"] for line in path.read_text().splitlines()] == [0, 1]


def test_a_damaged_line_is_named(tmp_path):
    with opened(tmp_path, CONFIG) as results:
        results.append(RECORD)
    path = tmp_path / "results.jsonl"
    path.write_bytes(b"{broken\n" + path.read_bytes())
    with pytest.raises(UserError, match=r"results\.jsonl, line 1, is damaged"), opened(tmp_path, CONFIG):
        pass


def test_another_config_is_refused_and_the_differences_are_named(tmp_path):
    with opened(tmp_path, CONFIG) as results:
        results.append(RECORD)
    other = CONFIG | {"data": {"train_size": 50}, "seeds": 8}
    with pytest.raises(UserError) as error, opened(tmp_path, other):
        pass
    assert "data.train_size: 40 there, 50 now" in str(error.value)
    assert "seeds: absent there, 8 now" in str(error.value)
    assert "epochs" not in str(error.value)


def test_what_is_kept_beside_the_identity_may_differ(tmp_path):
    with opened(tmp_path, CONFIG, about={"made_with": {"jax": "1"}}):
        pass
    with opened(tmp_path, CONFIG, about={"made_with": {"jax": "2"}}) as results:
        assert results.about["made_with"] == {"jax": "1"} and results.about["epochs"] == 3


def test_an_identity_of_an_older_version_is_completed(tmp_path):
    with opened(tmp_path, CONFIG):
        pass
    newer = CONFIG | {"seeds": 8}
    with opened(tmp_path, newer, complete=lambda there: {"seeds": 8} | there) as results:
        assert "seeds" not in results.about
    with pytest.raises(UserError, match="seeds: 9 there, 8 now"):
        opened(tmp_path, newer, complete=lambda there: {"seeds": 9} | there).__enter__()


def test_results_without_a_config_are_refused(tmp_path):
    (tmp_path / "results.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="no config.json"), opened(tmp_path, CONFIG):
        pass


def test_one_process_at_a_time(tmp_path):
    busy = pytest.raises(UserError, match="in use by another process")
    with opened(tmp_path, CONFIG), busy, opened(tmp_path, CONFIG):
        pass


def test_an_unwritable_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write results to --workdir .*file"):
        with opened(tmp_path / "file" / "run", CONFIG):
            pass


def test_a_full_disk_is_reported(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with opened(tmp_path, CONFIG) as results:
        monkeypatch.setattr(store.os, "write", full)
        with pytest.raises(UserError, match="No space left on device"):
            results.append(RECORD)
        assert RECORD not in results
