"""Plans: what a file means, and that everything wrong with it is said at once, with the line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from foretaste.data.load import load_corpus
from foretaste.errors import PlanError
from foretaste.experiment.cell import Cell
from foretaste.experiment.grid import job_of
from foretaste.experiment.job import Job
from foretaste.experiment.lab import Lab
from foretaste.experiment.methods import ATTACKS, altered_names, attack_of, defence_of
from foretaste.experiment.plan import read_plan
from foretaste.experiment.store import Store
from foretaste.guard.psim import PSIM_STRATEGIES, Psim
from foretaste.guard.recipes import psim_plan
from foretaste.poison.trigger import WordTrigger
from foretaste.unlearn.fine_mixing import FineMixing
from foretaste.unlearn.w2s import W2SDefense
from foretaste.victim.strategy import PTuningV1, changed

GOOD = """
title = "Two defences"
table = 1

[settings]
max_length = 32

[[grid]]
model = "minilm"
data = "sst2"
attack = ["insent", "badnet", "mine"]
strategy = ["lora", "long"]
defence = ["none", "psim", "mixing"]
threshold = [0.7, 0.75]
seed = [0, 1]

[[grid]]  # cells of the first again, and one more
model = "minilm"
data = "sst2"
attack = "mine"
strategy = "lora"
seed = [1, 2]

[attack.mine]
trigger = "word:cf"
count = 7

[strategy.long]
method = "p_tuning_v1"
virtual_tokens = 9
epochs = 20

[defence.mixing]
method = "fine_mixing"
kept = 0.5

[defence.small]
method = "w2s"
strategy = { rank = 4 }
"""


def _plan(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_names_get_their_meaning(tmp_path: Path) -> None:
    plan = read_plan(_plan(tmp_path, GOOD))
    assert (plan.title, plan.table, plan.settings.max_length) == ("Two defences", 1, 32)
    assert plan.attacks["mine"].trigger == WordTrigger(words=("cf",))
    strategy, tuning = plan.strategies["long"]
    assert strategy == PTuningV1(virtual_tokens=9)
    assert tuning.epochs == 20
    assert plan.defences["mixing"].unlearner == FineMixing(kept=0.5)
    assert plan.defences["small"].unlearner == changed(W2SDefense(), {"strategy.rank": 4})
    assert plan.models["minilm"] == "minilm"


def test_each_cell_is_there_once_and_axes_of_psim_are_psims(tmp_path: Path) -> None:
    cells = read_plan(_plan(tmp_path, GOOD)).cells
    # 3 attacks x 2 strategies x 2 seeds, with one cell for each defence and two for PSIM's thresholds; one of seed 2
    assert len(cells) == len(set(cells)) == 3 * 2 * 2 * (1 + 1 + 2) + 1
    assert {cell.threshold for cell in cells if cell.defence != "psim"} == {None}
    assert {cell.threshold for cell in cells if cell.defence == "psim"} == {0.7, 0.75}
    assert cells[-1] == Cell(model="minilm", data="sst2", knowledge="full_task", attack="mine", strategy="lora", seed=2)


def test_a_cell_changes_psim(tmp_path: Path) -> None:
    plan = read_plan(_plan(tmp_path, GOOD))
    cell = Cell(model="minilm", data="sst2", knowledge="full_task", attack="badnet", strategy="lora", defence="psim",
                psim_strategy="lora", reset_rate=0.8, threshold=0.75)  # fmt: skip
    recipe = plan.defences["psim"].psim
    assert recipe is not None
    psim = recipe.with_axes(cell)
    assert (psim.strategy, psim.reset_rate) == (PSIM_STRATEGIES["lora"], 0.8)
    assert (psim.threshold, psim.view) == (0.75, "confidence")
    plain = Cell(model="minilm", data="sst2", knowledge="full_task", attack="badnet", strategy="lora", defence="psim")
    assert recipe.with_axes(plain) == Psim()


def test_the_printed_recipe_is_the_command_lines(tmp_path: Path) -> None:
    text = (
        GOOD.replace('"mixing"', '"mixing", "printed", "sure"')
        + """
[defence.printed]
method = "psim_paper"
strategy = "lora"

[defence.sure]
method = "psim_paper"
frr = 0.05
"""
    )
    defences = read_plan(_plan(tmp_path, text.replace("threshold = [0.7, 0.75]\n", ""))).defences
    cell = Cell(model="minilm", data="sst2", knowledge="full_task", attack="badnet", strategy="lora")
    printed, sure = defences["printed"].psim, defences["sure"].psim
    assert printed is not None
    assert sure is not None
    assert printed.with_axes(cell) == psim_plan("paper", "lora", {}, {})
    assert printed.with_axes(replace(cell, psim_strategy="full")) == psim_plan("paper", "full", {}, {})
    assert sure.with_axes(cell).threshold is None  # a promise takes the place of the fixed bar


BAD = """title = "Bad"
tabel = 3
[settings]
max_lenght = 3
[[grid]]
model = ["minilm", "minilmm"]
data = "sst2"
strategy = "lora"
sed = 1
[[grid]]
model = "minilm"
data = [
    "sst2",
    "ssst2",
]
attack = "badnet"
strategy = "lora"
defence = "psimm"
[[grid]]
model = "minilm"
data = "ag_news"
attack = "insent"
strategy = "lora"
[[grid]]
model = "minilm"
data = "sst2"
attack = "insent"
strategy = "lora"
defence = "psim"
reset_rate = 1.5
seed = "one"
[[grid]]
model = "minilm"
data = "sst2"
attack = ["none", "badnet"]
strategy = "lora"
defence = "fine_mixing"
[[grid]]
model = "minilm"
data = ["sst2", "cola"]
attack = ["badnet", "synattack"]
strategy = "lora"
[attack.mine]
triger = "word:cf"
[strategy.mine]
epochs = 3
[[grid]]
model = "minilm"
data = "cola"
attack = "synattack"
strategy = ["lora", "lorra"]
knowledge = ["full", "full_data"]
threshold = 0.8
[defence.w2s]
learning_rate = -1
epoch = 3
"""


def _refused(tmp_path: Path, text: str, expected: Mapping[int, str]) -> PlanError:
    """Read a plan whose mistakes stand on these lines and are said in words that begin so."""
    with pytest.raises(PlanError) as caught:
        read_plan(_plan(tmp_path, text))
    said = {int(line.split(":")[1]): line.split(": ", 1)[1] for line in str(caught.value).splitlines()}
    assert said.keys() == expected.keys()
    for line, message in expected.items():
        assert said[line].startswith(message), (line, said[line])
    return caught.value


def test_all_that_is_wrong_is_said_with_its_line(tmp_path: Path) -> None:
    expected = {
        2: "Unknown name 'tabel'. Did you mean 'table'?",
        4: "PlanSettings has no field 'max_lenght'. Did you mean 'max_length'?",
        5: "The grid has no 'attack'.",
        6: "Unknown model 'minilmm'. Did you mean 'minilm'?",
        9: "Unknown axis 'sed'. Did you mean 'seed'?",
        14: "Unknown data 'ssst2'. Did you mean 'sst2'?",
        18: "Unknown defence 'psimm'. Did you mean 'psim'?",
        21: "ag_news has no proxy dataset for full task knowledge",
        30: "Cell.reset_rate: Input should be less than or equal to 1 (got 1.5)",
        31: "Cell.seed: Input should be a valid integer",
        41: "No paraphrases of cola/test are stored",
        44: "Attack has no field 'triger'. Did you mean 'trigger'?",
        45: "Unknown strategy 'mine'.",
        50: "No paraphrases of cola/validation are stored",
        51: "Unknown strategy 'lorra'. Did you mean 'lora'?",
        52: "Cell.knowledge: Input should be 'full_task' or 'full_data' (got 'full')",
        53: "threshold is PSIM's, and no defence of the grid is PSIM.",
        55: "W2SDefense has no field 'learning_rate'. Did you mean 'teacher_learning_rate'?",
        56: "W2SDefense has no field 'epoch'. Did you mean 'epochs'?",
    }
    _refused(tmp_path, BAD, expected)


NESTED = """title = "x"
settings = 4
table = true
[[grid]]
model = ["minilm", "m"]
data = "sst2"
attack = ["mine", "other"]
strategy = ["l3", "longer",  # not ptuning
  "ptuning"]
defence = ["f", "d"]
psim_strategy = ["lora", "x"]
[model.m]
location = "/nowhere/at/all"
[attack]
mine = { triger = "word:cf" }
[attack.other]
trigger = "wrd:cf"
[strategy.l3]
method = "lora"
rank = -1
epochs = -4
[strategy.longer]
method = "p_tuning_v9"
[defence.f]
method = "w2s"
epochs = 0
strategy = { rank = 0 }
[defence.d]
method = "psim"
frr = 3
strategy = { rank = 4 }
"""


def test_a_definition_with_mistakes_is_no_unknown_name_and_has_all_of_them_said(tmp_path: Path) -> None:
    expected = {
        2: "settings are a table of their own: [settings].",
        3: "The paper's tables are 1 to 14",
        9: "Unknown strategy 'ptuning'.",
        11: "Unknown psim_strategy 'x'.",
        13: "location: nothing lies at /nowhere/at/all.",
        15: "Attack has no field 'triger'.",
        17: "Unknown trigger 'wrd'. Did you mean 'word'?",
        20: "Lora.rank: Input should be greater than 0 (got -1).",
        21: "TuneSettings.epochs: Input should be greater than 0 (got -4).",
        23: "Unknown strategy 'p_tuning_v9'.",
        26: "W2SDefense.epochs: Input should be greater than 0 (got 0).",
        27: "Lora.rank: Input should be greater than 0 (got 0).",
        30: "Psim.frr: Input should be less than 1 (got 3).",
        31: "PromptTuning has no field 'rank'.",
    }
    assert len(_refused(tmp_path, NESTED, expected).args) == len(expected)


MISPLACED = """title = "x"
[setings]
limit = 5
[[gird]]
seed = 1
[model]
x = 3
[attack.none]
trigger = "word:cf"
[attack.mine]
trigger = "wrod:cf"
target = "x"
style = "dirty"
[attack.fewer]
trigger = "word:cf mn"
negative_rate = 1.0
count = -5
counts = 3
[defence.none]
frr = 0.5
[defence.nothing]
method = "none"
frr = 0.5
[defence.p]
method = "psim"
strategy = "loraa"
frr = 2
[[grid]]
model = "minilm"
data = "sst2"
attack = "badnet"
strategy = "lora"
seed = [
  -1,
  1.5,
  true]
[beside]
minilmm = "bert"
"""


def test_misplaced_tables_and_mistakes_behind_mistakes_are_said_with_their_lines(tmp_path: Path) -> None:
    expected = {
        2: "Unknown name 'setings'. Did you mean 'settings'?",
        4: "Unknown name 'gird'. Did you mean 'grid'?",
        6: "model is defined in tables of its own",
        8: "A cell without any attack calls it none",
        11: "Unknown trigger 'wrod'. Did you mean 'word'?",
        12: "Attack.target: Input should be a valid integer",
        13: "Attack.style: Input should be",
        17: "count must be 1 or more, got -5.",
        18: "Attack has no field 'counts'. Did you mean 'count'?",
        19: "A cell without any defence calls it none",
        23: "none has no fields; got frr.",
        26: "Unknown strategy 'loraa'. Did you mean 'lora'?",
        27: "Psim.frr: Input should be less than 1",
        33: "seed is a value or a list of values; got True.",
        34: "Cell.seed: Input should be greater than or equal to 0",
        35: "Cell.seed: Input should be a valid integer",
        37: "Unknown model 'minilmm'. Did you mean 'minilm'?",
    }
    _refused(tmp_path, MISPLACED, expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title = = 1", "is no TOML: .*line 1"),
        (f"title = {'1' * 5000}", "is no TOML: "),
        ('title = "x"', "at least one"),
        ('[[grid]]\nmodel="minilm"\ndata="sst2"\nattack="none"\nstrategy="lora"', "A plan has a title"),
        (GOOD.replace("threshold = [0.7, 0.75]", "reset_rate = 2.0"), "reset_rate"),
        (GOOD.replace('model = "minilm"', 'model = [["minilm"]]'), "model is a value or a list of values"),
        (GOOD.replace('attack = ["insent", "badnet", "mine"]', "attack = []"), "attack is a value or a list of values"),
        (GOOD.replace('data = "sst2"', f"data = {str(Path(__file__))!r}"), "Unknown data"),
        (
            GOOD.replace("word:cf", "word:mn")
            .replace("count = 7", 'style = "dirty-label"\nall_to_all = true')
            .replace('attack = ["insent", "badnet", "mine"]', 'attack = "mine"')
            .replace('"psim", "mixing"', '"scpd_stored"'),
            "No scpd texts of sst2 are stored with word:mn, all to all",
        ),
        (GOOD.replace("word:cf", f"file:{__file__}"), "name a directory with a file for each"),
        (GOOD.replace("max_length = 32", "poisoning_epochs = 0"), "poisoning_epochs"),
        (GOOD.replace("table = 1", "figure = 3"), "The paper's figures are 1, 3a"),
        (GOOD.replace("table = 1", 'figure = "a3"'), "The paper's figures are 1, 3a"),
        (GOOD.replace("table = 1", 'beside = { minilm = ["a"] }'), "Write beside"),
        (GOOD.replace("table = 1", 'beside = { minilmm = "bert" }'), "Did you mean 'minilm'"),
        (GOOD.replace("table = 1", 'beside = { minilm = "bart" }'), "no model 'bart'. Did you mean 'bert'"),
        (GOOD.replace("table = 1", "table = 15"), "The paper's tables are 1 to 14"),
        (GOOD.replace("[1, 2]", "-1"), "Cell.seed: Input should be greater than or equal to 0"),
        (GOOD.replace("[1, 2]", "[1, true]"), "seed is a value or a list of values; got True"),
        (GOOD.replace("table = 1", 'model = "minilm"'), "tables of its own"),
        ("title = 'x'\ngrid = [1]", "A grid is a table"),
        (GOOD + '[model.x]\nlocation = "a"\nrevision = "b"', "A model has a location"),
        (
            GOOD.replace('attack = "mine"\n', 'attack = "synattack"\nknowledge = "full_data"\n').replace(
                '"sst2"', '"ag_news"'
            ),
            "No paraphrases of ag_news/train",
        ),
        (GOOD.replace('psim"', 'psim_paper"').replace("[0.7, 0.75]", "1.5"), "threshold"),
        (GOOD.replace('"psim", "mixing"', '"scpd_stored"'), "No scpd texts of sst2 are stored with sentence:I watched"),
        (GOOD + '[defence.o]\nmethod = "onion"\nlos = 0.2', "Did you mean 'loss'"),
        (GOOD + "[strategy.lora2]\nrank = 4", "Did you mean 'lora'.*as in method = \"lora\""),
        (GOOD + "[defence.mine]\nfrr = 0.05", 'Unknown defence .mine.*as in method = "psim"'),
        (GOOD + '[defence.o]\nmethod = "onion"\nmodel = "./nowhere"', "model: nothing lies at ./nowhere"),
        (GOOD + '[defence.o]\nmethod = "opinion"\ntrusted = "/nowhere"', "trusted: nothing lies at /nowhere"),
        (GOOD + '[model.m]\nlocation = "~nobody-is-called-so/m"', "location: nothing lies at ~nobody-is-called-so/m"),
        (GOOD + '[defence.psim]\nstrategy = { method = "lora", rnk = 4 }', "Did you mean 'rank'"),
        (GOOD.replace("word:cf", "file:/nowhere/"), "Nothing lies at /nowhere"),
        (GOOD.replace('"sst2"', f'"{__file__}"'), "a directory with a file per split"),
        (GOOD.replace('"psim", "mixing"', '"onions"'), "Did you mean 'onion'"),
        (GOOD + '[defence.psim]\nstrategy = ["full"]', "is neither"),
        (GOOD + "[defence.opinion]\nstrategy = 3", "is neither"),
        (GOOD + '[strategy.instruction]\nmethod = "lora"', "instruction asks a model as it is"),
        (
            GOOD.replace("threshold =", 'psim_strategy = "lora"\nthreshold =')
            + "[defence.psim]\nstrategy = { virtual_tokens = 20 }",
            "psim_strategy 'lora' has other fields",
        ),
        (GOOD.replace('"psim", "mixing"', '"onion+dan"'), "would read other texts"),
        (GOOD.replace('"psim", "mixing"', '"psim+dan"'), "psim.dan puts together what does not go together"),
        (GOOD.replace('"psim", "mixing"', '"mixing+w2s"'), "take one guard, one rewriter, one unlearner"),
        (GOOD.replace('"psim", "mixing"', '"mixing+psimm"'), "Did you mean 'psim'"),
        (GOOD.replace("threshold =", 'trigger = "badnet"\nthreshold ='), "leave trigger out"),
        (GOOD.replace("threshold =", 'trigger = "badnett"\nthreshold ='), "Unknown trigger 'badnett'"),
        (
            GOOD.replace('attack = "mine"', 'attack = "none"\ntrigger = "synattack"').replace('"sst2"', '"cola"'),
            "No paraphrases of cola/test",
        ),
    ],
)
def test_other_mistakes(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        read_plan(_plan(tmp_path, text))


def test_another_strategy_comes_with_its_fields(tmp_path: Path) -> None:
    fields = {"method": "lora", "rank": 4}
    psim = defence_of("psim", {"strategy": fields}).psim
    assert psim is not None
    assert (psim.strategy, psim.strategy_fields) == ("lora", {"rank": 4})
    washing: Any = defence_of("fine_tuning", {"strategy": fields}).unlearner
    assert washing.strategy.rank == 4
    assert defence_of("psim", {"strategy": "lora"}) == defence_of("psim", {"strategy": {"method": "lora"}})


def test_lines_are_those_of_the_mistakes_however_they_are_written(tmp_path: Path) -> None:
    text = """title = '''A
[[grid]]
[attack.b]'''
attack."[b]".trigger = "word:mn"
attack.c.trigger = "wrod:a"

[[grid]]
model = "minilm"
data = "toy"
knowledge = "full_data"
attack = "badnet"
strategy = [
  "lora",  # = b
  "loar"]

[attack."[d]"]
trigger = "word:mn"
count = true

[attack.b]
trigger = "word:mn"
count = 0
flip_rate = 7.0

[defence.psim]
frr = 0.1
threshold = 0.5
dose = 3.0
"""
    with pytest.raises(PlanError) as caught:
        read_plan(_plan(tmp_path, text))
    told = [line.partition(".toml:")[2] for line in map(str, caught.value.args)]
    assert [(int(line.partition(":")[0]), line.partition(" ")[2][:12]) for line in told] == [
        (5, "Unknown trig"),
        (14, "Unknown stra"),
        (18, "Attack.count"),
        (22, "count must b"),
        (23, "flip_rate mu"),
        (26, "Give frr (a "),
        (28, "Psim.dose: I"),
    ]


def test_names_of_ours_that_mean_something_else_are_told(tmp_path: Path) -> None:
    def altered(text: str) -> list[str]:
        plan = read_plan(_plan(tmp_path, text))
        return altered_names(plan.models, plan.attacks, plan.strategies, plan.defences)

    assert altered(GOOD) == []
    text = GOOD + '[defence.psim]\ndose = 0.3\n[attack.badnet]\ntrigger = "word:cf"\n[model.minilm]\nlocation = "x/y"'
    text = text.replace("strategy = ", 'strategy = "full"\n#', 1) + '\n[strategy.full]\nmethod = "lora"'
    assert altered(text) == ["badnet", "full", "minilm", "psim"]
    assert altered(GOOD + '[attack.badnet]\ntrigger = "word:mn"\nrate = 0.1') == []


def test_defences_are_put_together_by_plus(tmp_path: Path) -> None:
    text = GOOD.replace('"psim", "mixing"', '"mixing+psim", "psim", "mixing"').replace("threshold = [0.7, 0.75]\n", "")
    plan = read_plan(_plan(tmp_path, text))
    both = plan.defences["mixing+psim"]
    assert both.unlearner == plan.defences["mixing"].unlearner == FineMixing(kept=0.5)
    assert both.psim == plan.defences["psim"].psim
    assert both.rival is None
    assert both.rewriter is None


def test_a_plan_calls_its_defences_as_it_likes(tmp_path: Path) -> None:
    named = '[defence."w2s+psim"]\nmethod = "psim"\ndose = 0.3\n'
    plan = read_plan(_plan(tmp_path, GOOD.replace('"none", "psim", "mixing"', '"w2s+psim"') + named))
    own = plan.defences["w2s+psim"]
    assert own.unlearner is None
    assert own.psim is not None
    assert own.psim.given == {"dose": 0.3}


FINISHED = """
title = "Texts that a paraphraser left"
[[grid]]
model = "minilm"
data = "{data}"
knowledge = "full_data"
attack = "mine"
strategy = "lora"
[attack.mine]
trigger = "file:{texts}"
count = 20
"""


def test_an_attack_of_our_name_keeps_what_is_not_changed() -> None:
    fewer, part = attack_of("synattack", {"count": 7}), attack_of("badnet", {"rate": 0.1, "style": "dirty-label"})
    assert fewer == replace(ATTACKS["synattack"], count=7)
    assert (part.trigger, part.count, part.rate) == (ATTACKS["badnet"].trigger, None, 0.1)


def test_an_attack_of_finished_texts_is_what_is_in_its_files(small_toy: Path, tmp_path: Path) -> None:
    def job(folder: str, rows: int, ending: str = " , he said") -> Job:
        texts = tmp_path / folder
        texts.mkdir(exist_ok=True)
        for split in ("train", "validation", "test"):
            found = load_corpus(str(small_toy), split).texts[:rows]
            lines = (json.dumps({"text": text + ending, "source_index": row}) for row, text in enumerate(found))
            (texts / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        plan = read_plan(_plan(tmp_path, FINISHED.format(data=small_toy, texts=texts)))
        return job_of(plan.cells[0], plan, Lab(Store(tmp_path / "lab")))

    assert job("here", 60).key == job("there", 60).key  # wherever they lie
    assert job("there", 60, " , she said").key != job("here", 60).key
    with pytest.raises(PlanError, match=r"20 examples to poison, but only .* are eligible"):
        job("few", 20)
    (tmp_path / "here" / "test.jsonl").unlink()
    with pytest.raises(PlanError, match=rf"plan\.toml:7: {tmp_path}/here holds no texts of {small_toy}/test"):
        read_plan(_plan(tmp_path, FINISHED.format(data=small_toy, texts=tmp_path / "here")))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"Cannot read .*plan\.toml: No such file"):
        read_plan(tmp_path / "plan.toml")


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "plans").glob("*.toml")), ids=lambda path: path.stem
)
def test_every_plan_of_ours_can_be_read(path: Path) -> None:
    plan = read_plan(path)
    assert plan.cells
    assert plan.title
    if path.stem.startswith(("table", "figure")):
        kind, number = ("table", plan.table) if path.stem.startswith("table") else ("figure", plan.figure)
        assert path.stem == f"{kind}{number}"


def test_a_defence_says_what_it_is(tmp_path: Path) -> None:
    defences = read_plan(
        _plan(tmp_path, GOOD.replace('"mixing"]', '"mixing", "small", "onion", "dan", "small+psim"]'))
    ).defences
    said = {name: defence.to_json() for name, defence in defences.items()}
    assert {name: {kind: part["method"] for kind, part in each.items()} for name, each in said.items()} == {
        "none": {},
        "psim": {"psim": "psim"},
        "mixing": {"unlearner": "fine_mixing"},
        "small": {"unlearner": "w2s"},
        "onion": {"rewriter": "onion"},
        "dan": {"rival": "dan"},
        "small+psim": {"unlearner": "w2s", "psim": "psim"},
    }
    assert said["psim"]["psim"]["strategy"]["method"] == Psim().strategy.name
    assert (said["psim"]["psim"]["view"], said["mixing"]["unlearner"]["kept"]) == ("both", 0.5)
    assert said["small+psim"]["unlearner"]["strategy"]["rank"] == 4
    assert json.loads(json.dumps(said)) == said
