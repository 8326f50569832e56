"""The notebooks agree with their sources, say what they must, run, and were built without a trace of this machine."""

import ast
import base64
import io
import re
import statistics
from pathlib import Path
from types import ModuleType

import jupytext
import nbformat
import pytest
from PIL import Image

import tnkit as tn
from notebooks import build

ROOT = Path(__file__).parents[1]
NAMES = ["00_explore", "01_detection", "02_latent_spaces", "03_ablation", "04_specificity", "05_your_model"]
NAMES += ["06_evidence", "07_steering"]
SOURCES = build.sources()
EXPLAINED = (  # warnings that the text explains
    "so scores may hardly tell it from others; see target() of the detection",
    "does not add it: correct for a model trained without it",
)
SAVED = re.compile(r"^save\(\"([\w-]+)\"", re.MULTILINE)
PREFIX = re.compile(r"figure_saver\(\s*f\"\{figures\}/(\d\d)\"")
# Few sentences and a tiny random model; the notebooks' own parameters belong to the packaged one.
SMALL = {
    "00_explore": {"sentences": 12, "languages": ["en", "ja"]},
    "01_detection": {"top": 8, "sentences": 6},
    "02_latent_spaces": {"sentences": 12, "neighbours": 3},
    "03_ablation": {"top": 8, "sentences": 6, "read": 2, "prompts": 2, "seeds": 1, "languages": ["en", "ja", "ko"]},
    "04_specificity": {"top": 8, "sentences": 8, "quantile": 0.3, "languages": ["en", "ja", "it"]},
    "05_your_model": {"top": 8, "sentences": 8, "seeds": 1, "file": "mine.tsv"},
    "06_evidence": {"top": 8, "sentences": 6, "draws": 2, "languages": ["en", "ja", "it"]},
    "07_steering": {"top": 8, "sentences": 6, "prompts": 3, "strengths": [1.0], "layer": 2, "languages": ["en", "it"]},
}


@pytest.fixture(params=SOURCES, ids=lambda path: path.stem)
def source(request):
    return request.param


@pytest.fixture
def pair(source):
    """The source, and the notebook as it was built."""
    return build.read(source), nbformat.read(source.with_suffix(".ipynb"), nbformat.NO_CONVERT)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    """A tiny random model that reads sentences of a few hundred bytes."""
    import transformers

    from tnkit.testing import byte_tokenizer, tiny_config

    config = tiny_config("llama")
    config.max_position_embeddings = 1024
    transformers.set_seed(0)
    folder = tmp_path_factory.mktemp("tiny")
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(notebook):
    return [
        output.data["image/png"]
        for cell in code_cells(notebook)
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]


def saved(notebook):
    """The names, without endings, that the notebook's one saver writes its figures under."""
    code = "\n".join(cell.source for cell in code_cells(notebook))
    (prefix,) = PREFIX.findall(code)
    return [f"{prefix}-{name}" for name in SAVED.findall(code)]


def parsed(notebook):
    """Every code cell's syntax tree; magics of IPython, which no other Python reads, are left out."""
    for cell in code_cells(notebook):
        yield ast.parse(re.sub(r"^(\s*)%.*$", r"\1pass", cell.source, flags=re.MULTILINE))


def test_all_notebooks_are_found_each_with_its_source_and_its_parameters_here():
    assert [path.stem for path in SOURCES] == NAMES == sorted(SMALL)
    assert sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")) == NAMES


def test_source_and_notebook_agree(source, pair):
    _, built = pair
    assert jupytext.writes(built, fmt="py:percent") == source.read_text()
    assert [cell.id for cell in built.cells] == [f"{source.stem}-{place}" for place in range(len(built.cells))]


def test_it_begins_with_its_question_and_cites_the_paper(pair):
    written, _ = pair
    first = written.cells[0]
    assert first.cell_type == "markdown"
    assert re.match(r"# .*\?", first.source)
    assert "Tezuka & Inoue" in first.source
    assert "EMNLP 2025" in " ".join(first.source.split())
    assert "aclanthology.org/2025.emnlp-main.1618" in first.source
    assert any("not** show" in cell.source for cell in written.cells[-3:])


def test_its_cells_are_short_and_define_nothing(pair):
    written, _ = pair
    assert len([cell for cell in written.cells if "parameters" in cell.metadata.get("tags", ())]) == 1
    lengths = [len(cell.source.splitlines()) for cell in code_cells(written)]
    assert statistics.median(lengths) <= 5
    for tree in parsed(written):
        kinds = {type(node) for node in ast.walk(tree)}
        assert not kinds & {ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda}


def test_papermill_finds_its_parameters(source):
    import papermill

    found = papermill.inspect_notebook(source.with_suffix(".ipynb"))
    assert {"model_id", "figures"} <= set(found)
    assert set(SMALL[source.stem]) <= set(found)


def test_it_installs_the_kit_on_colab_from_the_one_address(pair):
    written, _ = pair
    first = code_cells(written)[0].source
    assert '"google.colab" in sys.modules' in first
    assert f'pip install -q "tnkit[demo,measures] @ {build.address()}"' in first
    assert len(first.splitlines()) <= 5
    for cell in written.cells:
        assert build.addressed(cell.source) == cell.source


def test_it_uses_public_names_only(pair):
    written, _ = pair
    allowed = {"IPython.display", "pandas", "pathlib", "sys", "tnkit", "tnkit.testing", "torch", "transformers"}
    for tree in parsed(written):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= allowed
            if isinstance(node, ast.ImportFrom):
                assert node.module in allowed
            if isinstance(node, ast.Attribute):
                assert not node.attr.startswith("_")
            inner = node.value if isinstance(node, ast.Attribute) else None
            if isinstance(inner, ast.Name) and inner.id == "tn":
                assert node.attr in tn.__all__
            if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name) and inner.value.id == "tn":
                assert is_public(inner.attr, node.attr), f"tn.{inner.attr}.{node.attr}"


def is_public(module, name):
    """Whether a name of the kit offers another: a module lists it or defines it, a class has it."""
    found = getattr(tn, module)
    if not isinstance(found, ModuleType):
        return hasattr(found, name)
    listed = getattr(found, "__all__", ())
    home = getattr(found.__dict__.get(name), "__module__", "")  # a package's names are defined in its files
    return name in listed or home == found.__name__ or home.startswith(f"{found.__name__}.")


def test_its_outputs_are_clean(source, pair):
    _, built = pair
    assert source.with_suffix(".ipynb").stat().st_size <= build.LARGEST
    assert "widgets" not in built.metadata
    assert set(built.metadata) == {"jupytext", "kernelspec", "language_info"}
    for cell in built.cells:
        assert set(cell.metadata) <= {"tags"}
    for cell in code_cells(built):
        assert cell.execution_count
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr" or any(known in output.text for known in EXPLAINED), output.text
            assert build.VIEW not in output.get("data", {})
            build.check_places(output, cell)


def test_its_figures_are_written_and_shown(source, pair):
    written, built = pair
    names = saved(written)
    assert names
    assert len(set(names)) == len(names) == len(pictures(built))
    for name in names:
        assert name.startswith(source.stem[:2])
        assert (ROOT / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    stray = {path.stem for path in (ROOT / "figures").glob(f"{source.stem[:2]}-*")} - set(names)
    assert not stray
    for picture in pictures(built):
        assert Image.open(io.BytesIO(base64.b64decode(picture))).mode == "P"


def test_it_runs_with_other_parameters(source, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TNKIT_CACHE", str(tmp_path / "cache"))
    figures = tmp_path / "figures"
    parameters = SMALL[source.stem] | {"model_id": str(tiny_folder), "figures": str(figures)}
    run = build.execute(build.read(source), tmp_path, parameters)
    names = saved(run)
    assert {path.name for path in figures.iterdir()} == {f"{name}.{end}" for name in names for end in ("png", "svg")}
    assert len(pictures(run)) == len(names)


# The builder


def cells(*sources):
    return nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("x = 1", metadata={"tags": ["parameters"]})]
        + [nbformat.v4.new_code_cell(source) for source in sources]
    )


def test_parameters_are_replaced_after_their_cell(tmp_path):
    run = build.execute(cells("print(x)"), tmp_path, {"x": "two"})
    assert [cell.source for cell in run.cells] == ["x = 1", "x = 'two'", "print(x)"]
    assert run.cells[2].outputs[0].text == "two\n"


def test_a_cell_that_raises_stops_the_build(tmp_path):
    with pytest.raises(build.BuildError, match="a cell raised ValueError: no such layer"):
        build.execute(cells("raise ValueError('no such layer')"), tmp_path)


@pytest.mark.parametrize(
    "widget",
    [
        "ipywidgets.HTML('<div class=\"tn-error\">ValueError: no such layer</div>')",
        "out = ipywidgets.Output(); out.append_display_data; out.capture()(lambda: 1 / 0)()",
    ],
)
def test_a_widget_whose_callback_raised_stops_the_build(tmp_path, widget):
    with pytest.raises(build.BuildError, match=r"callback raised: (ValueError: no such layer|ZeroDivisionError)"):
        build.execute(cells(f"import ipywidgets\nfrom IPython.display import display\n{widget}"), tmp_path, timeout=60)


@pytest.mark.parametrize(("silent", "first"), [(1, True), (2, True), (1, False)])
def test_a_kernel_that_does_not_answer_the_first_cell_is_replaced_once(tmp_path, monkeypatch, silent, first):
    started, execute_cell = [], build.NotebookClient.async_execute_cell

    async def lost(client, cell, place, **options):
        started.extend([place] if place == 0 else [])
        if len(started) <= silent and place == (0 if first else 1):
            raise build.CellTimeoutError.error_from_timeout_and_cell("no answer", 60, cell)
        return await execute_cell(client, cell, place, **options)

    monkeypatch.setattr(build.NotebookClient, "async_execute_cell", lost)
    if silent == 1 and first:
        run = build.execute(cells("print(x)"), tmp_path, timeout=60)
        assert run.cells[1].outputs[0].text == "1\n"
    else:
        with pytest.raises(build.BuildError, match="no answer"):
            build.execute(cells("print(x)"), tmp_path, timeout=60)
    assert len(started) == (2 if first else 1)


def test_widgets_become_pictures_bars_go_and_nothing_of_the_run_stays(tmp_path):
    picture = base64.b64encode(plain_png()).decode()
    run = build.execute(
        cells(
            "from tqdm.auto import tqdm\nfor _ in tqdm(range(2)): pass\nprint('done')",
            f"from IPython.display import display\n"
            f"display({{{build.VIEW!r}: {{'model_id': 'x'}}, 'image/png': {picture!r}}}, raw=True)",
        ),
        tmp_path,
    )
    tidied = build.tidy(run, "09_name")
    assert [output.get("text") for output in tidied.cells[1].outputs] == ["done\n"]
    assert list(tidied.cells[2].outputs[0].data) == ["image/png"]
    assert tidied.metadata == {"language_info": {"name": "python"}}
    assert [cell.id for cell in tidied.cells] == ["09_name-0", "09_name-1", "09_name-2"]
    assert [cell.metadata for cell in tidied.cells] == [{"tags": ["parameters"]}, {}, {}]


def test_an_output_that_names_a_place_of_this_machine_is_refused(tmp_path):
    for text in (f"{ROOT}/figures/x.png", "/home/someone/x.png"):
        run = build.execute(cells(f"print({text!r})"), tmp_path)
        with pytest.raises(build.BuildError, match="names a place of this machine"):
            build.tidy(run, "09_name")


def test_every_address_becomes_the_one_of_the_project():
    assert build.addressed('# %pip install "tnkit @ git+https://example.org/a/b"') == (
        f'# %pip install "tnkit @ {build.address()}"'
    )


def test_an_unknown_notebook_is_named(capsys):
    assert build.main(["09_nothing"]) == 1
    assert "no notebook 09_nothing; there are 00_explore, 01_detection" in capsys.readouterr().err
    assert [path.stem for path in build.sources(["02_latent_spaces", "01_detection.py"])] == [
        "02_latent_spaces",
        "01_detection",
    ]


def plain_png():
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 30, 30)).save(file, "PNG")
    return file.getvalue()
