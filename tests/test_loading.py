"""Finding the user's function."""

from __future__ import annotations

import functools
import hashlib
import sys

import pytest

from mophpc.errors import ExperimentError
from mophpc.loading import load_callable, reference_of, resolve, source_sha256


@pytest.fixture(autouse=True)
def _clean_imports():
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def write(folder, name: str, text: str):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_function_of_a_file_is_found_relative_to_the_reference(tmp_path):
    write(tmp_path, "models/net.py", "def build(config):\n    return config['a']\n")
    build = load_callable("models/net.py:build", tmp_path)
    assert build({"a": 3}) == 3
    assert load_callable(f"{tmp_path}/models/net.py:build") is build


def test_files_of_one_name_do_not_collide(tmp_path):
    for name in ("a", "b"):
        write(tmp_path, f"{name}/model.py", f"def build():\n    return '{name}'\n")
    found = [load_callable(f"{name}/model.py:build", tmp_path)() for name in ("a", "b")]
    assert found == ["a", "b"]


def test_a_file_may_import_files_beside_it_and_use_dataclasses(tmp_path):
    write(tmp_path, "layers_beside.py", "WIDTH = 8\n")
    text = (
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from layers_beside import WIDTH\n"
        "@dataclass\n"
        "class Net:\n"
        "    width: int = WIDTH\n"
        "def build():\n"
        "    return Net().width\n"
    )
    write(tmp_path, "net.py", text)
    assert load_callable("net.py:build", tmp_path)() == 8


def test_a_function_of_a_package_is_found(tmp_path):
    write(tmp_path, "own_models_pkg/__init__.py", "")
    write(tmp_path, "own_models_pkg/nets.py", "def build():\n    return 1\n")
    assert load_callable("own_models_pkg.nets:build", tmp_path)() == 1
    assert load_callable("json:dumps") is __import__("json").dumps


BAD = [
    ("build", "'build' does not name a function; write file.py:function or package.module:f"),
    ("net.py:", "'net.py:' does not name a function"),
    (":build", "':build' does not name a function"),
    ("net.py:a.b", "'net.py:a.b' does not name a function"),
    ("gone.py:build", "there is no file '"),
    ("net.py:made", "'net.py' has no function 'made'; it has build, other"),
    ("kinds.py:Nope", "'kinds.py' has no function 'Nope'; it has Mine, make"),
    ("empty.py:build", "'empty.py' has no function 'build'; it has none"),
    ("net.py:WIDTH", "'net.py:WIDTH' is a int, not a function"),
    ("broken.py:build", "importing 'broken.py' failed: SyntaxError: "),
    ("raises.py:build", "importing 'raises.py' failed: ZeroDivisionError: division by zero"),
    ("no_such_pkg.nets:build", "importing 'no_such_pkg.nets' failed: ModuleNotFoundError: No mo"),
]


@pytest.mark.parametrize(("reference", "message"), BAD)
def test_what_cannot_be_found_is_said_in_one_sentence(tmp_path, reference, message):
    write(tmp_path, "net.py", "WIDTH = 8\ndef other(): ...\ndef build(): ...\n")
    text = "from dataclasses import Field\nclass Mine: ...\ndef make(): ...\n"
    write(tmp_path, "kinds.py", text)
    write(tmp_path, "empty.py", "")
    write(tmp_path, "broken.py", "def build(:\n")
    write(tmp_path, "raises.py", "1 / 0\n")
    with pytest.raises(ExperimentError) as caught:
        load_callable(reference, tmp_path)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_file_that_failed_can_be_mended_and_loaded(tmp_path):
    path = write(tmp_path, "net.py", "1 / 0\n")
    with pytest.raises(ExperimentError):
        load_callable("net.py:build", tmp_path)
    path.write_text("def build():\n    return 5\n")
    assert load_callable("net.py:build", tmp_path)() == 5


def build_here(config):
    return config


def test_a_function_s_reference_leads_back_to_it():
    reference = reference_of(build_here)
    assert reference == f"{__file__}:build_here"
    assert load_callable(reference)({"a": 1}) == {"a": 1}


def local_builds():
    def build(config): ...

    return [build, lambda config: None, functools.partial(build_here), build_here.__call__]


@pytest.mark.parametrize("number", range(4))
def test_a_function_that_other_ranks_cannot_import_is_refused(number):
    with pytest.raises(ExperimentError, match=r"build is '.*'; it must be a function at the top"):
        reference_of(local_builds()[number])


def test_references_to_files_are_made_absolute_and_others_left_alone(tmp_path):
    assert resolve("net.py:build", tmp_path) == f"{tmp_path}/net.py:build"
    assert resolve("../net.py:build", tmp_path / "sub") == f"{tmp_path}/net.py:build"
    assert resolve("pkg.nets:build", tmp_path) == "pkg.nets:build"


def test_the_source_of_a_function_has_a_digest():
    with open(__file__, "rb") as file:
        expected = hashlib.sha256(file.read()).hexdigest()
    assert source_sha256(build_here) == expected
    assert source_sha256(len) is None
