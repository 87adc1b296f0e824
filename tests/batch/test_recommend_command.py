"""`deeprec recommend`: files of lists, also after kill -9."""

from __future__ import annotations

import re
import shlex
import signal
from pathlib import Path

import polars as pl
import pytest

import processes
from command_line import CONFIG, Site, deeprec
from deeprec import TRM, Explorer, ScriptedPolicy, load_config, load_dataset
from toys import toy_dataset

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "retrieval.md"
MANY, SOME = 9000, 700
"""Users of a large table, of three parts; and those for whom an explorer explores, in three parts too."""


def test_all_users_by_the_trm(site: Site, tmp_path: Path) -> None:
    out = tmp_path / "new" / "recs.parquet"
    result = site("recommend", "--users", "all", "--k", 4, "--out", out)
    assert result.code == 0, result.err
    assert result.out.splitlines()[-1] == f"Recommendations for 60 users: {out}"
    trm, dataset = TRM.load(site.trained / "trm"), load_dataset(site.root / "table.csv")
    assert pl.read_parquet(out).drop("score").equals(trm.recommend(dataset, k=4).drop("score"))
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_k_is_that_of_the_configuration(site: Site, tmp_path: Path) -> None:
    assert site("recommend", "--out", tmp_path / "recs.csv").code == 0
    assert pl.read_csv(tmp_path / "recs.csv")["rank"].max() == 3


@pytest.mark.parametrize("text", ["u7\nu3\n", "\ufeffu7\r\n\r\n  u3  \r\nu7", "u7\ru3"], ids=["plain", "dos", "mac"])
def test_users_of_a_file_by_the_policy(site: Site, tmp_path: Path, text: str) -> None:
    (tmp_path / "users.txt").write_bytes(text.encode())
    out = tmp_path / "recs.jsonl"
    result = site("recommend", "--by", "policy", "--users", tmp_path / "users.txt", "-k", 5, "--out", out)
    assert result.code == 0, result.err
    assert result.out.splitlines()[-1] == f"Recommendations for 2 users: {out}"
    trm, dataset = TRM.load(site.trained / "trm"), load_dataset(site.root / "table.csv")
    explorer = Explorer(ScriptedPolicy(), trm, config=load_config(site.config).explore)
    table = pl.read_ndjson(out)
    assert table["user"].unique(maintain_order=True).to_list() == ["u7", "u3"]
    for user, part in table.partition_by("user", as_dict=True).items():
        history = dataset.sequence(dataset.users.index(user[0])).tolist()
        trace = explorer.recommend(history, k=5)
        assert tuple(part["title"]) == trace.titles
        assert set(part["origin"]) == {trace.origin.value}
        assert part["preference"].to_list() == [trace.first_found()[item][1].preference for item in trace.ranking]


def test_the_commands_of_the_guide_run(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "users.txt").write_text("u1\n")
    lines = re.findall(r"^deeprec recommend .*$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) >= 2
    for line in lines:
        result = site(*shlex.split(line, comments=True)[1:])
        assert result.code == 0, f"{line}: {result.err}"
        Path(shlex.split(line)[shlex.split(line).index("--out") + 1]).unlink()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, stand_in: None) -> Site:
    """A table of many users, and a TRM that was trained on it for one epoch."""
    root = tmp_path_factory.mktemp("large")
    dataset = toy_dataset(n_users=MANY, length=4)
    users = pl.Series([dataset.users[n // 4] for n in range(4 * MANY)])
    items = pl.Series("item_id", dataset.items_N).cast(pl.String)
    table = pl.DataFrame(
        {"user_id": users, "item_id": "i" + items, "title": "Film " + items, "position": [0, 1, 2, 3] * MANY}
    )
    table.write_csv(root / "table.csv")
    (root / "users.txt").write_text("\n".join(dataset.users[:SOME]))
    config, runs = root / "deeprec.toml", root / "runs"
    config.write_text(CONFIG.format(table=str(root / "table.csv")).replace("epochs = 10", "epochs = 1"))
    result = deeprec("trm", "train", "--config", config, "--runs", runs)
    assert result.code == 0, result.err
    return Site(root, config, runs, next(runs.iterdir()))


BY = {"trm": ["--by", "trm", "--users", "all"], "policy": ["--by", "policy", "--users", "USERS"]}


@pytest.fixture(scope="module")
def unbroken(large: Site) -> dict[str, bytes]:
    contents = {}
    for by in BY:
        out = large.root / f"{by}.parquet"
        result = deeprec(*command(large, by, out))
        assert result.code == 0, result.err
        contents[by] = out.read_bytes()
    return contents


def command(large: Site, by: str, out: Path) -> list[str]:
    chosen = [word.replace("USERS", str(large.root / "users.txt")) for word in BY[by]]
    return ["recommend", *chosen, "--out", str(out), "--config", str(large.config), "--runs", str(large.runs)]


def parts_of(out: Path, pattern: str) -> list[Path]:
    return list(out.with_name(f"{out.name}.parts").glob(pattern))


@pytest.mark.parametrize(
    ("by", "sign"),
    [("trm", signal.SIGKILL), ("policy", signal.SIGKILL), ("trm", signal.SIGINT)],
    ids=["trm, kill -9", "policy, kill -9", "trm, Ctrl-C"],
)
def test_a_killed_command_goes_on(
    large: Site, unbroken: dict[str, bytes], tmp_path: Path, by: str, sign: signal.Signals
) -> None:
    out = tmp_path / "recs.parquet"

    def reached() -> bool:
        if by == "trm":
            return len(parts_of(out, "*.parquet")) >= 1
        return any(log.read_bytes().count(b"\n") >= 20 for log in parts_of(out, "000001.jsonl"))

    status, err = processes.stopped([*processes.DEEPREC, *command(large, by, out)], sign, reached)
    assert status == (130 if sign == signal.SIGINT else -sign)
    assert err == ("deeprec: interrupted; what was finished is kept.\n" if sign == signal.SIGINT else "")
    assert not out.exists()
    finished = parts_of(out, "*.parquet")
    assert 1 <= len(finished) < 3
    result = deeprec(*command(large, by, out))
    assert result.code == 0, result.err
    assert out.read_bytes() == unbroken[by]
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_other_settings_than_those_of_the_parts_are_refused(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "recs.parquet"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TRM, "retrieve", interrupted)
        assert site("recommend", "--out", out).code == 130
    for other, said in ((["-k", 4], "another k"), (["--by", "policy"], "another recommender")):
        result = site("recommend", "--out", out, *other)
        assert result.code == 2
        assert result.err.startswith(f"deeprec: {out}.parts holds an unfinished run with {said}")
        assert result.err.count("\n") == 1
    assert site("recommend", "--out", out).code == 0
